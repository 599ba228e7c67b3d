// Sparse attention of one query, some heads: scores of all visible rows, softmax, weighted sum of the rows.
// Whatever the buffers hold besides, every sum runs over the query's own rows in their order.
#pragma once

#include "vector_rows.h"

namespace fourfold {
namespace {

// scores[h][r] = scale * q[h] . rows[r], four heads and tile_rows rows at a time.
template <class S>
void attention_scores(const Query& query) {
    constexpr index_t B = S::tile_rows, count = 4 * B;
    const index_t stride = scores_stride(query.count), last = query.count - 1;
    const typename S::F scale = S::broadcast(query.scale);
    for (index_t r = 0; r < query.count; r += B) {
        const float* rows[B];
        for (index_t b = 0; b < B; ++b) rows[b] = query.rows[r + b < last ? r + b : last];
        for (index_t h = 0; h < query.heads; h += 4) {
            const float* q[4];
            for (index_t a = 0; a < 4; ++a)
                q[a] = query.q + (h + a < query.heads ? h + a : query.heads - 1) * query.width;
            typename S::F acc[count], sums[sum_vectors<S, count>];
            for (index_t i = 0; i < count; ++i) acc[i] = S::zero();
            multiply<S, 4, B>(q, rows, query.width, acc);
            collect<S, count>(acc, sums);
            float tile[count];
            for (int v = 0; v < sum_vectors<S, count>; ++v) S::store(tile + v * S::lanes, S::mul(sums[v], scale));
            // The scores' stride leaves room for a whole tile.
            for (index_t a = 0; a < 4 && h + a < query.heads; ++a)
                std::memcpy(query.scores + (h + a) * stride + r, tile + a * B, B * sizeof(float));
        }
    }
}

// A head's scores become its weights.  The sink takes part in the sum and has no value.
template <class S>
void softmax_with_sink(float* scores, index_t count, float sink, bool rounded) {
    using F = typename S::F;
    const F none = S::broadcast(-INFINITY);
    F most = S::broadcast(sink);
    S::store(scores + count, none);
    for (index_t i = 0; i < count; i += S::lanes) most = S::max(most, S::load(scores + i));
    most = S::broadcast(S::largest(most));
    F sum = S::zero();
    for (index_t i = 0; i < count; i += S::lanes) {
        const F p = exponential<S>(S::sub(S::load(scores + i), most));
        sum = S::add(sum, p);
        S::store(scores + i, p);
    }
    const F at_sink = exponential<S>(S::sub(S::broadcast(sink), most));
    const F factor = S::broadcast(1.f / (S::sum(sum) + S::first(at_sink)));
    for (index_t i = 0; i < count; i += S::lanes) {
        const F p = S::mul(S::load(scores + i), factor);
        S::store(scores + i, rounded ? S::to_bf16_grid(p) : p);
    }
}

// out[a][i ...] += sum over rows of weights[a][r] * rows[r][i ...] for four heads, V vectors or, if V is 0, the
// `left` < lanes elements of a last one.
template <class S, int V>
void values_tile(const float* const* rows, index_t count, const float* const (&weights)[4],
                 index_t i, index_t left, float* const (&out)[4], index_t heads, bool first) {
    using F = typename S::F;
    constexpr int N = V ? V : 1;
    F acc[4 * N];
    for (int a = 0; a < 4; ++a)
        for (int v = 0; v < N; ++v) {
            const float* p = out[a] + i + v * S::lanes;
            acc[a * N + v] = first ? S::zero() : V ? S::load(p) : S::load_some(p, left);
        }
    for (index_t r = 0; r < count; ++r) {
        const float* row = rows[r] + i;
        F value[N];
        for (int v = 0; v < N; ++v) value[v] = V ? S::load(row + v * S::lanes) : S::load_some(row, left);
        for (int a = 0; a < 4; ++a) {
            const F p = S::broadcast(weights[a][r]);
            for (int v = 0; v < N; ++v) acc[a * N + v] = S::fma(p, value[v], acc[a * N + v]);
        }
    }
    for (int a = 0; a < heads && a < 4; ++a)
        for (int v = 0; v < N; ++v) {
            float* p = out[a] + i + v * S::lanes;
            if (V)
                S::store(p, acc[a * N + v]);
            else
                S::store_some(p, acc[a * N + v], left);
        }
}

// 128 rows at a time of a few vectors each: they stay in the first cache while the heads pass.
template <class S>
void attention_values(const Query& query) {
    constexpr index_t block = 128, wide = S::value_vectors * S::lanes;
    const index_t stride = scores_stride(query.count), width = query.width;
    index_t begin = 0;
    do {
        const index_t count = block < query.count - begin ? block : query.count - begin;
        for (index_t i = 0; i < width;) {
            const index_t left = width - i;
            for (index_t h = 0; h < query.heads; h += 4) {
                const float* weights[4];
                float* out[4];
                for (index_t a = 0; a < 4; ++a) {
                    const index_t head = h + a < query.heads ? h + a : query.heads - 1;
                    weights[a] = query.scores + head * stride + begin;
                    out[a] = query.out + head * width;
                }
                const auto tile = left >= wide       ? values_tile<S, S::value_vectors>
                                  : left >= S::lanes ? values_tile<S, 1>
                                                     : values_tile<S, 0>;
                tile(query.rows + begin, count, weights, i, left, out, query.heads - h, begin == 0);
            }
            i += left >= wide ? wide : S::lanes;
        }
        begin += block;
    } while (begin < query.count);
}

template <class S>
void attend(const Query& query) {
    attention_scores<S>(query);
    for (index_t h = 0; h < query.heads; ++h)
        softmax_with_sink<S>(query.scores + h * scores_stride(query.count), query.count, query.sink[h],
                             query.round_weights);
    attention_values<S>(query);
}

}  // namespace
}  // namespace fourfold
