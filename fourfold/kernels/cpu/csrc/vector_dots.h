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

// y[a][b] = the sums of a tile's chains.
template <class S>
void dots_sums(const float* chains, index_t n, index_t outputs, float* y, index_t y_stride) {
    constexpr index_t B = S::tile_rows, count = 4 * B;
    typename S::F acc[count], sums[sum_vectors<S, count>];
    for (index_t c = 0; c < count; ++c) acc[c] = S::load(chains + c * S::lanes);
    collect<S, count>(acc, sums);
    float tile[sum_vectors<S, count> * S::lanes];
    for (int v = 0; v < sum_vectors<S, count>; ++v) S::store(tile + v * S::lanes, sums[v]);
    for (index_t a = 0; a < 4 && a < n; ++a)
        for (index_t b = 0; b < B && b < outputs; ++b) y[a * y_stride + b] = tile[a * B + b];
}

// Up to kDotsW rows of w: a stretch of four rows of x stays in the first cache while the rows of w pass.
template <class S, class W>
void dots_block(const float* x, index_t x_stride, index_t n, const W* w, index_t w_stride, index_t outputs,
                index_t width, float* chains, float* y, index_t y_stride) {
    constexpr index_t B = S::tile_rows, tile = 4 * B * S::lanes;
    const index_t down = ceil_div(outputs, B);
    for (index_t i = 0; i < n; i += 4) {
        std::memset(chains, 0, down * tile * sizeof(float));
        for (index_t k = 0; k < width; k += kDotsStretch) {
            const index_t some = kDotsStretch < width - k ? kDotsStretch : width - k;
            const float* from[4];
            for (index_t a = 0; a < 4; ++a) from[a] = x + (i + a < n ? i + a : n - 1) * x_stride + k;
            for (index_t j = 0; j < down; ++j) {
                const W* rows[B];
                for (index_t b = 0; b < B; ++b)
                    rows[b] = w + (B * j + b < outputs ? B * j + b : outputs - 1) * w_stride + k;
                dots_tile<S>(from, rows, some, chains + j * tile);
            }
        }
        for (index_t j = 0; j < down; ++j)
            dots_sums<S>(chains + j * tile, n - i, outputs - B * j, y + i * y_stride + B * j, y_stride);
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
