// Dot products of many rows with many rows, and what the router makes of them.
#pragma once

#include "vector_rows.h"

namespace fourfold {
namespace {

// Few rows of x: eight rows of w at a time, each read once from end to end.
template <class S, class W>
void dots_one(const float* x, const W* w, index_t w_stride, index_t outputs, index_t width, float* y) {
    for (index_t o = 0; o < outputs; o += 8) {
        typename S::F acc[8], sums[sum_vectors<S, 8>];
        const W* rows[8];
        for (index_t r = 0; r < 8; ++r) {
            acc[r] = S::zero();
            rows[r] = w + (o + r < outputs ? o + r : outputs - 1) * w_stride;
        }
        multiply<S, 1, 8>({x}, rows, width, acc);
        collect<S, 8>(acc, sums);
        float eight[8 + S::lanes];
        for (int v = 0; v < sum_vectors<S, 8>; ++v) S::store(eight + v * S::lanes, sums[v]);
        for (index_t r = 0; r < 8 && o + r < outputs; ++r) y[o + r] = eight[r];
    }
}

// Four rows of x and tile_rows of w, a stretch of them: the chains wait in memory for the next stretch.
template <class S, class W>
FOURFOLD_INLINE void dots_tile(const float* const (&x)[4], const W* const (&w)[S::tile_rows], index_t n,
                               float* chains) {
    constexpr int count = 4 * S::tile_rows;
    typename S::F acc[count];
    for (int i = 0; i < count; ++i) acc[i] = S::load(chains + i * S::lanes);
    multiply<S, 4, S::tile_rows>(x, w, n, acc);
    for (int i = 0; i < count; ++i) S::store(chains + i * S::lanes, acc[i]);
}

// Up to kDotsX rows of x and kDotsW of w, in stretches of w that stay in the first cache.
template <class S, class W>
void dots_block(const float* x, index_t x_stride, index_t n, const W* w, index_t w_stride, index_t outputs,
                index_t width, float* chains, float* y, index_t y_stride) {
    constexpr index_t B = S::tile_rows, count = 4 * B, stretch = 256;
    const index_t across = ceil_div(n, 4), down = ceil_div(outputs, B);
    std::memset(chains, 0, across * down * count * S::lanes * sizeof(float));
    for (index_t k = 0; k < width; k += stretch) {
        const index_t some = stretch < width - k ? stretch : width - k;
        for (index_t i = 0; i < across; ++i) {
            const float* from[4];
            for (index_t a = 0; a < 4; ++a) from[a] = x + (4 * i + a < n ? 4 * i + a : n - 1) * x_stride + k;
            for (index_t j = 0; j < down; ++j) {
                const W* rows[B];
                for (index_t b = 0; b < B; ++b)
                    rows[b] = w + (B * j + b < outputs ? B * j + b : outputs - 1) * w_stride + k;
                dots_tile<S>(from, rows, some, chains + (i * down + j) * count * S::lanes);
            }
        }
    }
    for (index_t i = 0; i < across; ++i) {
        for (index_t j = 0; j < down; ++j) {
            typename S::F acc[count], sums[sum_vectors<S, count>];
            for (index_t c = 0; c < count; ++c)
                acc[c] = S::load(chains + ((i * down + j) * count + c) * S::lanes);
            collect<S, count>(acc, sums);
            float tile[sum_vectors<S, count> * S::lanes];
            for (int v = 0; v < sum_vectors<S, count>; ++v) S::store(tile + v * S::lanes, sums[v]);
            for (index_t a = 0; a < 4 && 4 * i + a < n; ++a)
                for (index_t b = 0; b < B && B * j + b < outputs; ++b)
                    y[(4 * i + a) * y_stride + B * j + b] = tile[a * B + b];
        }
    }
}

template <class S>
void dots(Rows x, index_t n, Rows w, index_t outputs, index_t width, float* scratch, float* y, index_t y_stride) {
    auto* from = static_cast<const float*>(x.data);
    with_type(w.type, w.data, [&](auto* rows) {
        if (n < 4) {
            for (index_t i = 0; i < n; ++i)
                dots_one<S>(from + i * x.stride, rows, w.stride, outputs, width, y + i * y_stride);
            return;
        }
        for (index_t i = 0; i < n; i += kDotsX)
            for (index_t o = 0; o < outputs; o += kDotsW)
                dots_block<S>(from + i * x.stride, x.stride, kDotsX < n - i ? kDotsX : n - i, rows + o * w.stride,
                              w.stride, kDotsW < outputs - o ? kDotsW : outputs - o, width, scratch,
                              y + i * y_stride + o, y_stride);
    });
}

template <class S>
void sqrt_softplus(float* x, index_t n) {
    for (index_t i = 0; i < n; i += S::lanes)
        store<S>(x + i, S::sqrt(softplus<S>(load<S>(x + i, n - i))), n - i);
}

}  // namespace
}  // namespace fourfold
