#include "isa.h"

#include <atomic>

namespace fourfold {
namespace {

std::vector<const Kernels*> detect() {
    std::vector<const Kernels*> found{&kScalarKernels};
#ifdef FOURFOLD_X86
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c")) {
        found.push_back(&kAvx2Kernels);
        if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
            __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq"))
            found.push_back(&kAvx512Kernels);
    }
#endif
#ifdef FOURFOLD_ARM
    found.push_back(&kNeonKernels);
#endif
    return found;
}

const std::vector<const Kernels*>& supported() {
    static const std::vector<const Kernels*> all = detect();
    return all;
}

std::atomic<const Kernels*>& current() {
    static std::atomic<const Kernels*> kernels{supported().back()};
    return kernels;
}

}  // namespace

std::vector<std::string> supported_isas() {
    std::vector<std::string> names;
    for (const Kernels* k : supported()) names.emplace_back(k->name);
    return names;
}

const Kernels& kernels() { return *current().load(std::memory_order_relaxed); }

bool use_isa(const std::string& name) {
    for (const Kernels* k : supported()) {
        if (name == k->name) {
            current() = k;
            return true;
        }
    }
    return false;
}

}  // namespace fourfold
