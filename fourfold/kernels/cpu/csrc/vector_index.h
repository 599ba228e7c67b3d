// The lightning indexer's scores.  V4 report 2.3.1, eq. 16.
#pragma once

#include "vector_rows.h"

namespace fourfold {
namespace {

// The weight of each head once for every key of a tile, in the order of the tile's sums; zero for no head.
template <class S>
void spread(const void* weights, Type type, index_t heads, float* y) {
    with_type(type, weights, [&](auto* w) {
        for (index_t h = 0; h < round_up(heads, 4); ++h)
            for (int b = 0; b < S::tile_rows; ++b)
                y[h * S::tile_rows + b] = h < heads ? S::first(S::load_some(w + h, 1)) : 0.f;
    });
}

// The scores of tile_rows keys; each key's heads are summed in four chains, head h in chain h mod 4.
template <class S>
FOURFOLD_INLINE void score_tile(const float* q, const float* weights, index_t heads, index_t width,
                                const float* const (&keys)[S::tile_rows], float* scores) {
    using F = typename S::F;
    constexpr int B = S::tile_rows, count = 4 * B, V = sum_vectors<S, count>;
    F total[V];
    for (int v = 0; v < V; ++v) total[v] = S::zero();
    for (index_t h = 0; h < heads; h += 4) {
        const float* rows[4];
        for (index_t a = 0; a < 4; ++a) rows[a] = q + (h + a < heads ? h + a : heads - 1) * width;
        F acc[count], sums[V];
        for (int i = 0; i < count; ++i) acc[i] = S::zero();
        multiply<S, 4, B>(rows, keys, width, acc);
        collect<S, count>(acc, sums);
        for (int v = 0; v < V; ++v)
            total[v] = S::fma(S::load(weights + h * B + v * S::lanes), S::max(S::zero(), sums[v]), total[v]);
    }
    float chains[count];
    for (int v = 0; v < V; ++v) S::store(chains + v * S::lanes, total[v]);
    for (int b = 0; b < B; ++b)
        scores[b] = (chains[b] + chains[B + b]) + (chains[2 * B + b] + chains[3 * B + b]);
}

template <class S>
void index_scores(const float* q, const float* weights, index_t heads, index_t width, Rows keys, index_t n,
                  float* scratch, float* scores) {
    constexpr index_t B = S::tile_rows, block = 32;
    const index_t padded = round_up(width, 16);
    for (index_t begin = 0; begin < n; begin += block) {
        const index_t count = block < n - begin ? block : n - begin;
        if (keys.type == Type::Bf16)
            for (index_t i = 0; i < count; ++i)
                widen<S>(keys.at(begin + i), keys.type, width, false, scratch + i * padded);
        for (index_t i = 0; i < count; i += B) {
            const float* rows[B];
            for (index_t b = 0; b < B; ++b) {
                const index_t key = i + b < count ? i + b : count - 1;
                rows[b] = keys.type == Type::Bf16 ? scratch + key * padded
                                                  : static_cast<const float*>(keys.at(begin + key));
            }
            float tile[B];
            score_tile<S>(q, weights, heads, width, rows, tile);
            for (index_t b = 0; b < B && i + b < count; ++b) scores[begin + i + b] = tile[b];
        }
    }
}

}  // namespace
}  // namespace fourfold
