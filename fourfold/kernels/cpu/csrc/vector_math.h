// Functions of vectors that the other vector_*.h share, as templates over an instruction set `S`.
// Included by each of the vector_*.cpp that has vectors, with its own flags, hence the
// unnamed namespace: an inline function compiled for AVX-512 must never be linked into the scalar build.
//
// S provides
//   lanes                  floats in a vector, a power of two
//   tile_rows              rows that meet four others at once in dot products; 4 * tile_rows is a multiple of lanes
//   value_vectors          vectors of a value row that meet four heads at once
//   F                      the vector
//   zero() broadcast(a)
//   load(p) store(p, v)    p: float* or bf16*; storing as bf16 rounds to the nearest, ties to even
//   load_some(p, n) store_some(p, v, n)   the first n < lanes of them; lanes that are not loaded are zero
//   add sub mul div fma(a, b, c) sqrt
//   min(a, b) max(a, b)    b where either is NaN
//   round(v)               to the nearest whole number, ties to even
//   abs(v) copy_sign(size, sign)
//   binade(v)              2^floor(log2 |v|), zero for zero and denormals
//   pow2(v)                2^v for whole -126 <= v <= 127
//   at_least(v, x, limit)  v where not x < limit, zero elsewhere
//   exchange<k>(v)         lane i of the result is lane i ^ k
//   to_bf16_grid(v)        what storing as bf16 and loading again gives
//   first(v) sum(v) largest(v)   lane 0; the sum in the order of `sums`; the largest
//   sums(v[lanes])         lane i: the sum of v[i], all in the same order
#pragma once

#include <cmath>
#include <cstring>
#include <limits>

#include "vector.h"

#define FOURFOLD_INLINE inline __attribute__((always_inline))

namespace fourfold {
namespace {

// A vector of which `left` elements are there.
template <class S, class T>
FOURFOLD_INLINE typename S::F load(const T* p, index_t left) {
    return left >= S::lanes ? S::load(p) : S::load_some(p, left);
}
template <class S, class T>
FOURFOLD_INLINE void store(T* p, typename S::F v, index_t left) {
    if (left >= S::lanes)
        S::store(p, v);
    else
        S::store_some(p, v, left);
}

// e^x to about one unit in the last place; zero below e^-87, the largest power below e^88.4 above it.
template <class S>
FOURFOLD_INLINE typename S::F exponential(typename S::F x) {
    using F = typename S::F;
    const F low = S::broadcast(-87.f);
    const F bounded = S::max(low, S::min(S::broadcast(88.3f), x));
    // x = n ln 2 + r, ln 2 in two parts of which n times the first is exact.
    const F n = S::round(S::mul(bounded, S::broadcast(1.44269504f)));
    F r = S::fma(n, S::broadcast(-0x1.62ep-1f), bounded);
    r = S::fma(n, S::broadcast(-0x1.0bfbe8p-15f), r);
    // (e^r - 1 - r) / r^2 with the least relative error on |r| <= ln 2 / 2.
    F p = S::broadcast(0.0013814601f);
    p = S::fma(p, r, S::broadcast(0.0083687168f));
    p = S::fma(p, r, S::broadcast(0.0416683880f));
    p = S::fma(p, r, S::broadcast(0.1666652063f));
    p = S::fma(p, r, S::broadcast(0.4999999344f));
    p = S::add(S::fma(p, S::mul(r, r), r), S::broadcast(1.f));
    return S::at_least(S::mul(p, S::pow2(n)), x, low);
}

template <class S>
FOURFOLD_INLINE typename S::F sigmoid(typename S::F x) {
    const typename S::F one = S::broadcast(1.f);
    return S::div(one, S::add(one, exponential<S>(S::sub(S::zero(), x))));
}

// log(1 + e^x) = max(x, 0) + 2 artanh(u / (2 + u)) with u = e^-|x|.
template <class S>
FOURFOLD_INLINE typename S::F softplus(typename S::F x) {
    using F = typename S::F;
    const F u = exponential<S>(S::sub(S::zero(), S::abs(x)));
    const F s = S::div(u, S::add(S::broadcast(2.f), u));
    const F z = S::mul(s, s);
    F p = S::broadcast(0.1215049680f);
    p = S::fma(p, z, S::broadcast(0.1071382110f));
    p = S::fma(p, z, S::broadcast(0.1430844304f));
    p = S::fma(p, z, S::broadcast(0.1999943885f));
    p = S::fma(p, z, S::broadcast(0.3333333781f));
    const F twice = S::add(s, s);
    return S::add(S::max(S::zero(), x), S::fma(S::mul(p, z), twice, twice));
}

// Sum over i of a[i]^2: four chains of vectors, vector i in chain i mod 4.
template <class S, class T>
float sum_of_squares(const T* x, index_t n) {
    using F = typename S::F;
    F chain[4] = {S::zero(), S::zero(), S::zero(), S::zero()};
    index_t i = 0;
    for (; i + 4 * S::lanes <= n; i += 4 * S::lanes) {
        for (int c = 0; c < 4; ++c) {
            const F v = S::load(x + i + c * S::lanes);
            chain[c] = S::fma(v, v, chain[c]);
        }
    }
    for (int c = 0; i < n; i += S::lanes, ++c) {
        const F v = load<S>(x + i, n - i);
        chain[c] = S::fma(v, v, chain[c]);
    }
    return S::sum(S::add(S::add(chain[0], chain[1]), S::add(chain[2], chain[3])));
}

// The dot products of A rows with B rows, `n` elements each, one chain of vectors for each pair: acc[a * B + b]
// goes on from what it holds.
template <class S, int A, int B, class TB>
FOURFOLD_INLINE void multiply(const float* const (&a)[A], const TB* const (&b)[B], index_t n,
                              typename S::F (&acc)[A * B]) {
    using F = typename S::F;
    index_t i = 0;
    for (; i + S::lanes <= n; i += S::lanes) {
        F w[B];
        for (int j = 0; j < B; ++j) w[j] = S::load(b[j] + i);
        for (int k = 0; k < A; ++k) {
            const F v = S::load(a[k] + i);
            for (int j = 0; j < B; ++j) acc[k * B + j] = S::fma(v, w[j], acc[k * B + j]);
        }
    }
    if (i < n) {
        F w[B];
        for (int j = 0; j < B; ++j) w[j] = S::load_some(b[j] + i, n - i);
        for (int k = 0; k < A; ++k) {
            const F v = S::load_some(a[k] + i, n - i);
            for (int j = 0; j < B; ++j) acc[k * B + j] = S::fma(v, w[j], acc[k * B + j]);
        }
    }
}

template <class S, int N>
constexpr int sum_vectors = (N + S::lanes - 1) / S::lanes;

// The sums of N chains, `lanes` to a vector.
template <class S, int N>
FOURFOLD_INLINE void collect(const typename S::F (&acc)[N], typename S::F (&sums)[sum_vectors<S, N>]) {
    for (int v = 0; v < sum_vectors<S, N>; ++v) {
        typename S::F group[S::lanes];
        for (int i = 0; i < S::lanes; ++i) {
            const int from = v * S::lanes + i;
            group[i] = from < N ? acc[from < N ? from : 0] : S::zero();
        }
        sums[v] = S::sums(group);
    }
}

}  // namespace
}  // namespace fourfold
