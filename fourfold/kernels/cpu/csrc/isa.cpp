#include "isa.h"

#include <atomic>

#include "vector.h"

namespace fourfold {
namespace {

// What one instruction set brings: products with stored matrices, and everything else.
struct Isa {
    const Kernels* kernels;
    const VectorKernels* vectors;
};

std::vector<Isa> detect() {
    std::vector<Isa> found{{&kScalarKernels, &kScalarVectors}};
#ifdef FOURFOLD_X86
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c")) {
        found.push_back({&kAvx2Kernels, &kAvx2Vectors});
        if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
            __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq"))
            found.push_back({&kAvx512Kernels, &kAvx512Vectors});
    }
#endif
#ifdef FOURFOLD_ARM
    found.push_back({&kNeonKernels, &kNeonVectors});
#endif
    return found;
}

const std::vector<Isa>& supported() {
    static const std::vector<Isa> all = detect();
    return all;
}

std::atomic<const Isa*>& current() {
    static std::atomic<const Isa*> isa{&supported().back()};
    return isa;
}

}  // namespace

std::vector<std::string> supported_isas() {
    std::vector<std::string> names;
    for (const Isa& isa : supported()) names.emplace_back(isa.kernels->name);
    return names;
}

const Kernels& kernels() { return *current().load(std::memory_order_relaxed)->kernels; }

const VectorKernels& vector_kernels() { return *current().load(std::memory_order_relaxed)->vectors; }

bool use_isa(const std::string& name) {
    for (const Isa& isa : supported()) {
        if (name == isa.kernels->name) {
            current() = &isa;
            return true;
        }
    }
    return false;
}

}  // namespace fourfold
