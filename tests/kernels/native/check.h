// What the checks of kernel_test share.
#pragma once

#include <cmath>
#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <random>
#include <vector>

#include "isa.h"

namespace fourfold {

inline int g_failures = 0;
inline std::mt19937 g_random(1);

// One line, with the instruction set that is in use.
__attribute__((format(printf, 2, 3))) inline void report(bool good, const char* format, ...) {
    std::va_list arguments;
    va_start(arguments, format);
    std::printf("%-4s %-7s ", good ? "ok" : "FAIL", kernels().name);
    std::vprintf(format, arguments);
    std::printf("\n");
    va_end(arguments);
    g_failures += !good;
}

inline int whole(int low, int high) { return std::uniform_int_distribution<>(low, high)(g_random); }

inline std::vector<float> normal(index_t count) {
    std::normal_distribution<float> draw;
    std::vector<float> x(count);
    for (float& v : x) v = draw(g_random);
    return x;
}

inline bool same_bits(const float* a, const float* b, index_t count) {
    return !std::memcmp(a, b, count * sizeof *a);
}

void check_matrices();
void check_bf16_inputs();
void check_integer_inputs();
void check_vectors();

}  // namespace fourfold
