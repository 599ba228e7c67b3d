#include "memory.h"

#include <climits>
#include <cstdlib>
#include <cstring>

#ifdef __linux__
#include <sys/syscall.h>
#include <unistd.h>
#endif
#ifdef __GLIBC__
#include <malloc.h>
#endif

namespace fourfold {

void keep_freed_memory() {
#ifdef __GLIBC__
    for (const char* name : {"MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_ARENA_MAX"})
        if (std::getenv(name)) return;
    if (const char* tuned = std::getenv("GLIBC_TUNABLES"); tuned && std::strstr(tuned, "glibc.malloc.")) return;
    constexpr int kept = 256 << 20;
    mallopt(M_MMAP_THRESHOLD, kept);
    mallopt(M_TRIM_THRESHOLD, kept);
    // One heap for all threads: those that further threads would get hold no block above 64 MiB.
    mallopt(M_ARENA_MAX, 1);
#endif
}

bool interleave([[maybe_unused]] std::size_t address, [[maybe_unused]] std::size_t size,
                [[maybe_unused]] const std::vector<int>& nodes) {
#if defined(__linux__) && defined(SYS_mbind)
    constexpr int kInterleave = 3;  // MPOL_INTERLEAVE of linux/mempolicy.h
    constexpr int kBits = CHAR_BIT * sizeof(unsigned long);
    std::vector<unsigned long> mask;
    for (const int node : nodes) {
        if (node < 0) return false;
        if (std::size_t(node / kBits) >= mask.size()) mask.resize(node / kBits + 1);
        mask[node / kBits] |= 1ul << (node % kBits);
    }
    // One bit more than there are: the kernel reads one less than it is told.
    return syscall(SYS_mbind, address, size, kInterleave, mask.data(), mask.size() * kBits + 1, 0) == 0;
#else
    return false;
#endif
}

}  // namespace fourfold
