// The race that draws a token: fourfold/kernels/draw.py.
#pragma once

#include "vector_math.h"

namespace fourfold {
namespace {

// a where the mask is all ones, b where it is zero.  No branch, and no `?:`, which compilers take for one where floating
// point operations may trap.
inline float pick(std::uint32_t mask, float a, float b) {
    std::uint32_t x, y;
    std::memcpy(&x, &a, sizeof x);
    std::memcpy(&y, &b, sizeof y);
    x = (x & mask) | (y & ~mask);
    std::memcpy(&a, &x, sizeof x);
    return a;
}

// The waits of n <= kDrawPiece tokens from `first` on.  Plain loops for the compiler to make vectors of; nothing is
// contracted, so that every instruction set gives the same bits.
inline void waits(std::uint64_t key, index_t first, index_t n, float* y) {
    std::int64_t part[kDrawPiece];
    std::uint32_t late[kDrawPiece];
    for (index_t i = 0; i < n; ++i) {
        std::uint64_t x = key + std::uint64_t(first + i + 1) * 0x9E3779B97F4A7C15u;
        x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
        x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
        x ^= x >> 31;
        const std::uint64_t top = -(x >> 63);
        late[i] = std::uint32_t(top);
        part[i] = std::int64_t(x ^ top);
    }
    for (index_t i = 0; i < n; ++i) y[i] = float(part[i]);
    for (index_t i = 0; i < n; ++i) {
        const float scaled = y[i] * 0x1p-64f, f = pick(-std::uint32_t(scaled == 0.f), 0x1p-65f, scaled);
        std::uint32_t bits;
        std::memcpy(&bits, &f, sizeof bits);
        const std::uint32_t fraction = (bits & 0x7fffff) | 0x3f800000;
        float one_to_two;
        std::memcpy(&one_to_two, &fraction, sizeof fraction);
        const std::int32_t big = one_to_two > 1.41421354f;
        const float m = pick(-std::uint32_t(big), one_to_two * 0.5f, one_to_two);
        const float exponent = float(std::int32_t(bits >> 23) - 127 + big);
        const float above = pick(late[i], m - 1.f, f), below = pick(late[i], m + 1.f, 2.f - f);
        const float s = above / below, z = s * s;
        float p = 0.1215049680f;
        p = p * z + 0.1071382110f;
        p = p * z + 0.1430844304f;
        p = p * z + 0.1999943885f;
        p = p * z + 0.3333333781f;
        const float twice = s + s, log = twice + twice * (p * z);
        y[i] = pick(late[i], -(exponent * 0.693147182f + log), log);
    }
}

template <class S>
void race(const float* logits, index_t first, index_t n, float peak, float temperature, std::uint64_t key, float* y) {
    using F = typename S::F;
    alignas(64) float wait[kDrawPiece];
    waits(key, first, n, wait);
    const F most = S::broadcast(peak), heat = S::broadcast(temperature);
    for (index_t i = 0; i < n; i += S::lanes) {
        const F distance = S::sub(load<S>(logits + first + i, n - i), most);
        const F likely = exponential<S>(S::div(distance, heat));
        store<S>(y + i, S::div(likely, load<S>(wait + i, n - i)), n - i);
    }
}

}  // namespace
}  // namespace fourfold
