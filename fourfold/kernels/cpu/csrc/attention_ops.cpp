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

// Whether bf16 products of bf16 rows are what is asked for, and matrix units are there to make them.
bool goes_narrow(const Attention& a) {
    return vector_kernels().attend_narrow && a.round && a.width % 32 == 0 && a.window.rows.type == Type::Bf16 &&
           a.entries.rows.type == Type::Bf16;
}

// What a thread needs for one query.
struct Workspace {
    std::vector<const void*> rows;
    std::vector<const float*> floats;
    std::vector<const bf16*> halves;
    Scratch wide, q, scores, slice, out;

    // The visible rows: where they lie, or widened to floats.
    void gather(const Attention& a, index_t i) {
        visible_rows(a, i, rows);
        const index_t count = index_t(rows.size());
        if (goes_narrow(a)) {
            halves.resize(count);
            for (index_t r = 0; r < count; ++r) halves[r] = static_cast<const bf16*>(rows[r]);
            return;
        }
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

// Queries of some heads as bf16: where they lie, or rounded.
const bf16* narrow_queries(const Attention& a, Workspace& w, index_t first, index_t heads) {
    if (a.q.type == Type::Bf16 && a.q.stride == a.width) return static_cast<const bf16*>(a.q.at(first));
    auto* to = reinterpret_cast<bf16*>(w.q.floats(ceil_div(heads * a.width, 2)));
    for (index_t h = 0; h < heads; ++h) {
        const void* from = a.q.at(first + h);
        if (a.q.type == Type::Bf16)
            std::memcpy(to + h * a.width, from, a.width * sizeof(bf16));
        else
            vector_kernels().narrow(static_cast<const float*>(from), a.width, to + h * a.width);
    }
    return to;
}

// The same as floats, on the grid of bf16 where that is asked for.
const float* wide_queries(const Attention& a, Workspace& w, index_t first, index_t heads) {
    if (a.q.type == Type::F32 && !a.round && a.q.stride == a.width)
        return static_cast<const float*>(a.q.at(first));
    float* to = w.q.floats(heads * a.width);
    for (index_t h = 0; h < heads; ++h)
        vector_kernels().widen(a.q.at(first + h), a.q.type, a.width, a.round, to + h * a.width);
    return to;
}

void attend_heads(const Attention& a, Workspace& w, index_t i, index_t head, index_t heads, void* y) {
    const VectorKernels& v = vector_kernels();
    const index_t first = i * a.heads + head, count = index_t(w.rows.size());
    const bool rounds_result = a.q.type != Type::F32;
    float* out = rounds_result ? w.out.floats(heads * a.width) : static_cast<float*>(y) + first * a.width;
    if (goes_narrow(a))
        v.attend_narrow({narrow_queries(a, w, first, heads), w.halves.data(), count, heads, a.width, a.sink + head,
                         a.scale, w.scores.floats(narrow_scratch(count, heads, a.width)), out});
    else
        v.attend({wide_queries(a, w, first, heads), w.floats.data(), count, heads, a.width, a.sink + head, a.scale,
                  a.round, w.scores.floats(heads * scores_stride(count)),
                  w.slice.floats(kSliceRows * kSliceWidth), out});
    if (rounds_result) v.narrow(out, heads * a.width, static_cast<bf16*>(y) + first * a.width);
}

// Keys that a thread scores at a time: also a single query is shared.
constexpr index_t kKeysAPiece = 2048;
constexpr index_t kScores = 1 << 22;  // floats of scores held at once

// A query of the indexer in the form that the keys meet.
class IndexQuery {
public:
    void prepare(const IndexChoice& c, index_t i) {
        const VectorKernels& v = vector_kernels();
        const void* weights = Rows{c.weights, c.weight_type, c.heads}.at(i);
        narrow_ = v.index_scores_narrow && c.q.type == Type::Bf16 && c.keys.rows.type == Type::Bf16 &&
                  c.width % 32 == 0;
        if (narrow_) {
            half_ = reinterpret_cast<bf16*>(q_memory_.floats(ceil_div(c.heads * c.width, 2)));
            for (index_t h = 0; h < c.heads; ++h)
                std::memcpy(half_ + h * c.width, c.q.at(i * c.heads + h), c.width * sizeof(bf16));
            weights_ = weight_memory_.floats(c.heads);
            v.widen(weights, c.weight_type, c.heads, false, weights_);
        } else {
            q_ = q_memory_.floats(c.heads * c.width);
            for (index_t h = 0; h < c.heads; ++h)
                v.widen(c.q.at(i * c.heads + h), c.q.type, c.width, false, q_ + h * c.width);
            weights_ = weight_memory_.floats(16 * round_up(c.heads, 4));
            v.spread(weights, c.weight_type, c.heads, weights_);
        }
    }
    // scores [n] of the keys from `from` on.
    void score(const IndexChoice& c, index_t i, index_t from, index_t n, float* scores) {
        const VectorKernels& v = vector_kernels();
        Rows keys = c.keys.rows;
        keys.data = c.keys.at(i / c.tokens, from);
        const index_t columns = round_up(c.heads, 16);
        if (narrow_)
            v.index_scores_narrow(half_, weights_, c.heads, c.width, keys, n,
                                  scratch_.floats(columns * (c.width / 2 + 17) + 8 * c.width + 256), scores);
        else
            v.index_scores(q_, weights_, c.heads, c.width, keys, n, scratch_.floats(32 * round_up(c.width, 16)),
                           scores);
    }

private:
    Scratch q_memory_, weight_memory_, scratch_;
    bool narrow_ = false;
    bf16* half_ = nullptr;
    float *q_ = nullptr, *weights_ = nullptr;
};

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
    const index_t queries = a.batch * a.tokens, threads = ThreadPool::instance().threads();
    // Few queries: threads share the heads of each.  Many: a query's rows are gathered once for all of its heads.
    const index_t heads = queries >= 4 * threads ? a.heads : round_up(ceil_div(a.heads, threads), 4);
    const index_t groups = ceil_div(a.heads, heads);
    share_rows(queries * groups, queries * a.heads * a.width * 64, [&](index_t begin, index_t end) {
        thread_local Workspace w;
        for (index_t p = begin; p < end; ++p) {
            const index_t i = p / groups, head = p % groups * heads;
            if (p == begin || head == 0) w.gather(a, i);
            attend_heads(a, w, i, head, std::min(heads, a.heads - head), y);
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
    const index_t queries = c.batch * c.tokens;
    index_t most = 0;
    for (index_t i = 0; i < queries; ++i) most = std::max(most, c.visible[2 * i + 1] - c.visible[2 * i]);
    const index_t stride = round_up(most, 16), chunks = ceil_div(most, kKeysAPiece);
    const index_t block = std::max<index_t>(1, kScores / std::max<index_t>(1, stride));
    for (index_t start = 0; start < queries; start += block) {
        const index_t count = std::min(block, queries - start);
        float* scores = score_memory.floats(count * stride);
        share_rows(count * chunks, count * most * c.heads * c.width, [&](index_t begin, index_t end) {
            thread_local IndexQuery query;
            for (index_t p = begin; p < end; ++p) {
                const index_t i = start + p / chunks, low = c.visible[2 * i], high = c.visible[2 * i + 1];
                const index_t from = low + p % chunks * kKeysAPiece;
                if (p == begin || p % chunks == 0) query.prepare(c, i);
                if (from < high)
                    query.score(c, i, from, std::min(kKeysAPiece, high - from),
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
