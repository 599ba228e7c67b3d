// Attention and the indexer's choice: which rows each query sees, and who computes what.
#include <algorithm>
#include <cstring>
#include <vector>

#include "scratch.h"
#include "sharing.h"
#include "tensor_ops.h"

namespace fourfold {
namespace {

// Addresses of the rows that query `i` (of batch * tokens) sees, window first.
void visible_rows(const Attention& a, index_t i, std::vector<const void*>& rows) {
    const index_t batch = i / a.tokens;
    rows.clear();
    for (index_t r = a.window_range[2 * i]; r < a.window_range[2 * i + 1]; ++r) rows.push_back(a.window.at(batch, r));
    if (a.entry_index) {
        for (index_t k = 0; k < a.choices; ++k)
            if (const index_t r = a.entry_index[i * a.choices + k]; r >= 0) rows.push_back(a.entries.at(batch, r));
    } else if (a.entry_range) {
        for (index_t r = a.entry_range[2 * i]; r < a.entry_range[2 * i + 1]; ++r)
            rows.push_back(a.entries.at(batch, r));
    }
}

// What a thread needs for one query.
struct Workspace {
    std::vector<const void*> rows;
    std::vector<const float*> floats;
    Scratch wide, q, scores, out;

    // The visible rows as floats: where they lie, or widened.
    void gather(const Attention& a, index_t i) {
        visible_rows(a, i, rows);
        const index_t count = index_t(rows.size());
        floats.resize(count);
        const bool window_wide = a.window.rows.type == Type::F32, entries_wide = a.entries.rows.type == Type::F32;
        const index_t seen = std::max<index_t>(0, a.window_range[2 * i + 1] - a.window_range[2 * i]);
        // A cache line more a row: rows of 4 KiB multiples would evict each other.
        const index_t stride = round_up(a.width, 16) + 16;
        float* to = window_wide && entries_wide ? nullptr : wide.floats(count * stride);
        for (index_t r = 0; r < count; ++r) {
            const Type type = r < seen ? a.window.rows.type : a.entries.rows.type;
            if (type == Type::F32) {
                floats[r] = static_cast<const float*>(rows[r]);
            } else {
                vector_kernels().widen(rows[r], type, a.width, false, to + r * stride);
                floats[r] = to + r * stride;
            }
        }
    }
};

// Heads that go together: their queries stay in the first cache while the rows pass.
constexpr index_t kHeads = 16;

void attend_heads(const Attention& a, Workspace& w, index_t i, index_t head, index_t heads, void* y) {
    const VectorKernels& v = vector_kernels();
    const index_t first = i * a.heads + head, count = index_t(w.floats.size());
    const bool in_place = a.q.type == Type::F32 && !a.round && a.q.stride == a.width;
    const float* q = static_cast<const float*>(a.q.at(first));
    if (!in_place) {
        float* to = w.q.floats(heads * a.width);
        for (index_t h = 0; h < heads; ++h) v.widen(a.q.at(first + h), a.q.type, a.width, a.round, to + h * a.width);
        q = to;
    }
    const bool narrow = a.q.type != Type::F32;
    float* out = narrow ? w.out.floats(heads * a.width) : static_cast<float*>(y) + first * a.width;
    v.attend({q, w.floats.data(), count, heads, a.width, a.sink + head, a.scale, a.round,
              w.scores.floats(heads * scores_stride(count)), out});
    if (narrow) v.narrow(out, heads * a.width, static_cast<bf16*>(y) + first * a.width);
}

// Keys that a thread scores at a time: also a single query is shared.
constexpr index_t kKeysAPiece = 2048;
constexpr index_t kScores = 1 << 22;  // floats of scores held at once

// Ascending order of floats as unsigned numbers; the two zeros are one.
std::uint32_t order_of(float v) {
    v += 0.f;
    std::uint32_t bits;
    std::memcpy(&bits, &v, sizeof bits);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

// The order of the k-th largest of scores [n], 0 < k <= n, and how many of those equal to it are among the k.
// One digit at a time, highest first, among those that share the digits before.
struct Threshold {
    std::uint32_t order;
    index_t room;
};
Threshold threshold(const float* scores, index_t n, index_t k) {
    thread_local std::vector<std::uint32_t> left, next;
    left.resize(n);
    for (index_t i = 0; i < n; ++i) left[i] = order_of(scores[i]);
    std::uint32_t prefix = 0;
    for (const int shift : {21, 10, 0}) {
        const std::uint32_t digits = shift == 0 ? 1024 : 2048;
        index_t counts[2048] = {};
        for (const std::uint32_t order : left) ++counts[order >> shift & (digits - 1)];
        std::uint32_t digit = digits - 1;
        for (; counts[digit] < k; --digit) k -= counts[digit];
        prefix |= digit << shift;
        next.clear();
        for (const std::uint32_t order : left)
            if ((order >> shift & (digits - 1)) == digit) next.push_back(order);
        left.swap(next);
    }
    return {prefix, k};
}

}  // namespace

void sparse_attention(const Attention& a, void* y) {
    const index_t queries = a.batch * a.tokens, groups = ceil_div(a.heads, kHeads);
    // Few queries: threads share the heads of each.  Many: a query's rows are gathered once for all of its heads.
    const bool split = queries < 4 * ThreadPool::instance().threads();
    const index_t pieces = split ? queries * groups : queries;
    share_rows(pieces, queries * a.heads * a.width * 64, [&](index_t begin, index_t end) {
        thread_local Workspace w;
        index_t gathered = -1;
        for (index_t p = begin; p < end; ++p) {
            const index_t i = split ? p / groups : p;
            if (i != gathered) w.gather(a, i);
            gathered = i;
            for (index_t g = split ? p % groups : 0; g < (split ? p % groups + 1 : groups); ++g)
                attend_heads(a, w, i, g * kHeads, std::min(kHeads, a.heads - g * kHeads), y);
        }
    });
}

void select_largest(const float* scores, index_t n, index_t k, index_t shift, index_t* indices) {
    index_t found = 0;
    if (k > 0 && n > k) {
        auto [order, room] = threshold(scores, n, k);
        for (index_t i = 0; found < k; ++i) {
            const std::uint32_t own = order_of(scores[i]);
            if (own > order || (own == order && room-- > 0)) indices[found++] = shift + i;
        }
    } else {
        for (; found < std::min(n, k); ++found) indices[found] = shift + found;
    }
    std::fill(indices + found, indices + k, index_t{-1});
}

void index_topk(const IndexChoice& c, index_t* indices) {
    thread_local Scratch score_memory;
    const VectorKernels& v = vector_kernels();
    const index_t queries = c.batch * c.tokens, spread = 16 * round_up(c.heads, 4);
    index_t most = 0;
    for (index_t i = 0; i < queries; ++i) most = std::max(most, c.visible[2 * i + 1] - c.visible[2 * i]);
    const index_t stride = round_up(most, 16), block = std::max<index_t>(1, kScores / std::max<index_t>(1, stride));
    for (index_t start = 0; start < queries; start += block) {
        const index_t count = std::min(block, queries - start), chunks = ceil_div(most, kKeysAPiece);
        float* scores = score_memory.floats(count * stride);
        share_rows(count * chunks, count * most * c.heads * c.width, [&](index_t begin, index_t end) {
            thread_local Scratch q_memory, weight_memory, scratch;
            index_t ready = -1;
            float *q = q_memory.floats(c.heads * c.width), *weights = weight_memory.floats(spread);
            for (index_t p = begin; p < end; ++p) {
                const index_t i = start + p / chunks, low = c.visible[2 * i], high = c.visible[2 * i + 1];
                const index_t from = low + p % chunks * kKeysAPiece;
                if (from >= high) continue;
                if (i != ready) {
                    for (index_t h = 0; h < c.heads; ++h)
                        v.widen(c.q.at(i * c.heads + h), c.q.type, c.width, false, q + h * c.width);
                    const Rows all{c.weights, c.weight_type, c.heads};
                    v.spread(all.at(i), c.weight_type, c.heads, weights);
                }
                ready = i;
                Rows keys = c.keys.rows;
                keys.data = c.keys.at(i / c.tokens, from);
                v.index_scores(q, weights, c.heads, c.width, keys, std::min(kKeysAPiece, high - from),
                               scratch.floats(32 * round_up(c.width, 16)),
                               scores + (i - start) * stride + (from - low));
            }
        });
        share_rows(count, count * most, [&](index_t begin, index_t end) {
            for (index_t j = begin; j < end; ++j) {
                const index_t i = start + j, low = c.visible[2 * i], n = c.visible[2 * i + 1] - low;
                select_largest(scores + j * stride, std::max<index_t>(0, n), c.k, low, indices + i * c.k);
            }
        });
    }
}

}  // namespace fourfold
