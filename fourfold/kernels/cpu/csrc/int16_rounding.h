// Groups of 512 values become whole numbers of 16 bits times a power of two (formats.round_int16_groups).
// Included by files with their own flags, hence the unnamed namespace.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#include "matrix.h"

namespace fourfold {
namespace {

constexpr index_t kInt16Group = 512;
constexpr float kInt16Most = 32639.f;  // 127 * 256 + 127: the upper byte of the nearest multiple of 256 is signed too

// x [count] -> whole numbers as floats, returns their scale; for a group with an infinity or NaN that is NaN.
inline float round_int16_group(const float* x, index_t count, float* whole) {
    std::uint32_t most = 0x0da24260;  // 1e-30f; magnitudes compare as their bits do
    for (index_t i = 0; i < count; ++i) {
        std::uint32_t bits;
        std::memcpy(&bits, x + i, sizeof bits);
        bits &= 0x7fffffff;
        most = bits > most ? bits : most;
    }
    float largest;
    std::memcpy(&largest, &most, sizeof largest);
    const float ratio = largest / kInt16Most;
    std::uint32_t bits;
    std::memcpy(&bits, &ratio, sizeof bits);
    const std::uint32_t exponent = (bits >> 23) + ((bits & 0x7fffff) != 0);
    const std::uint32_t up = exponent << 23, down = (254 - exponent) << 23;
    float scale, inverse;
    std::memcpy(&scale, &up, sizeof scale);
    std::memcpy(&inverse, &down, sizeof inverse);
    const bool finite = most < 0x7f800000;
    // Near 2^23 the spacing of floats is 1.
    for (index_t i = 0; i < count; ++i) whole[i] = finite ? (x[i] * inverse + 12582912.f) - 12582912.f : 0.f;
    return finite ? scale : std::numeric_limits<float>::quiet_NaN();
}

}  // namespace
}  // namespace fourfold
