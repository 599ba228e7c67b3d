#include "isa.h"

#include <atomic>

#ifdef FOURFOLD_NEONDOT
#include <sys/auxv.h>
#endif
#ifdef FOURFOLD_AMX
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "vector.h"

namespace fourfold {
namespace {

// What one instruction set brings: products with stored matrices, and everything else.
struct Isa {
    const char* name;
    const Kernels* kernels;
    const VectorKernels* vectors;
};

#ifdef FOURFOLD_AMX
// AMX with bf16 and int8, which Linux lets a process use that asks for it, and the byte permutations beside it.
bool have_matrix_units() {
    unsigned a, b, c, d = 0;
    constexpr unsigned bf16_bit = 1u << 22, tile_bit = 1u << 24, int8_bit = 1u << 25, all = bf16_bit | tile_bit | int8_bit;
    if (!__builtin_cpu_supports("avx512vbmi")) return false;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (d & all) != all) return false;
    constexpr long request_permission = 0x1023, tile_data = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
    return syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
}
#endif

std::vector<Isa> detect() {
    std::vector<Isa> found{{"scalar", &kScalarKernels, &kScalarVectors}};
#ifdef FOURFOLD_X86
    __builtin_cpu_init();
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma") || !__builtin_cpu_supports("f16c"))
        return found;
    found.push_back({"avx2", &kAvx2Kernels, &kAvx2Vectors});
    if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") ||
        !__builtin_cpu_supports("avx512vl") || !__builtin_cpu_supports("avx512dq"))
        return found;
    found.push_back({"avx512", &kAvx512Kernels, &kAvx512Vectors});
#ifdef FOURFOLD_AVX512VNNI
    if (!__builtin_cpu_supports("avx512vnni")) return found;
    found.push_back({"avx512vnni", &kAvx512VnniKernels, &kAvx512Vectors});
#ifdef FOURFOLD_AVX512BF16
    if (__builtin_cpu_supports("avx512bf16")) found.push_back({"avx512bf16", &kAvx512Bf16Kernels, &kAvx512Vectors});
#endif
#ifdef FOURFOLD_AMX
    if (have_matrix_units()) found.push_back({"amx", &kAmxKernels, &kAmxVectors});
#endif
#endif
#endif
#ifdef FOURFOLD_ARM
    found.push_back({"neon", &kNeonKernels, &kNeonVectors});
#ifdef FOURFOLD_NEONDOT
    if (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) found.push_back({"neondot", &kNeonDotKernels, &kNeonVectors});
#endif
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
    for (const Isa& isa : supported()) names.emplace_back(isa.name);
    return names;
}

std::string isa() { return current().load(std::memory_order_relaxed)->name; }

const Kernels& kernels() { return *current().load(std::memory_order_relaxed)->kernels; }

const VectorKernels& vector_kernels() { return *current().load(std::memory_order_relaxed)->vectors; }

bool use_isa(const std::string& name) {
    for (const Isa& isa : supported()) {
        if (name == isa.name) {
            current() = &isa;
            return true;
        }
    }
    return false;
}

}  // namespace fourfold
