// Groups of values become whole numbers from -127 to 127 times a float32 scale (formats.round_int8_groups).
// Included by files with their own flags, hence the unnamed namespace.
#pragma once

#include <cstdint>
#include <cstring>

#include "matrix.h"

namespace fourfold {
namespace {

constexpr index_t kInt8Group = kFp4Group;

// x [count] -> whole numbers as floats, returns their scale; a group with an infinity or NaN has that for its scale.
inline float round_int8_group(const float* x, index_t count, float* whole) {
    std::uint32_t most = 0x0da24260;  // 1e-30f; magnitudes compare as their bits do
    for (index_t i = 0; i < count; ++i) {
        std::uint32_t bits;
        std::memcpy(&bits, x + i, sizeof bits);
        bits &= 0x7fffffff;
        most = bits > most ? bits : most;
    }
    float largest;
    std::memcpy(&largest, &most, sizeof largest);
    const float inverse = 127.f / largest;
    const bool finite = most < 0x7f800000;
    // Near 2^23 the spacing of floats is 1.
    for (index_t i = 0; i < count; ++i) whole[i] = finite ? (x[i] * inverse + 12582912.f) - 12582912.f : 0.f;
    return largest / 127.f;
}

}  // namespace
}  // namespace fourfold
