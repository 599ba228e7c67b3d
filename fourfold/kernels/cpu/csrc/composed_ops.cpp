#include "composed_ops.h"

#include <algorithm>
#include <limits>

namespace fourfold {
namespace {

Activations rows_of(const float* x, index_t count, index_t columns) { return {x, nullptr, count, columns, columns}; }

// rms_norm and then rope on y [tokens * heads, width], in place.
void norm_and_turn(float* y, index_t tokens, index_t heads, index_t width, const NormWeight& norm, float eps,
                   const Angles& angles) {
    const Rows rows{y, Type::F32, width};
    rms_norm(rows, tokens * heads, width, norm.data, norm.type, eps, y);
    rope(rows, tokens, heads, width, angles.cos, angles.sin, angles.pairs, false, y);
}

void add_products(const CompressorInputs& c, Rounding rounding, std::vector<Product>& products) {
    const index_t width = c.wkv.rows;
    products.push_back({c.wkv, rounding, c.y, 2 * width});
    products.push_back({c.wgate, rounding, c.y + width, 2 * width});
}

void add_bias(const CompressorInputs& c, const index_t* positions, index_t tokens) {
    const index_t width = c.wkv.rows;
    for (index_t t = 0; t < tokens; ++t) {
        const float* bias = c.ape + positions[t] % c.m * width;
        float* scores = c.y + (2 * t + 1) * width;
        for (index_t i = 0; i < width; ++i) scores[i] += bias[i];
    }
}

// rows [batch, tokens, width] into their slots of a buffer.
void put(const float* rows, index_t width, const Attention& shape, const Buffer& slot) {
    for (index_t b = 0; b < shape.batch; ++b)
        for (index_t t = 0; t < shape.tokens; ++t, rows += width) {
            void* to = const_cast<void*>(slot.at(b, t));
            if (slot.rows.type == Type::F32)
                std::copy(rows, rows + width, static_cast<float*>(to));
            else
                vector_kernels().narrow(rows, width, static_cast<bf16*>(to));
        }
}

// Tokens whose visits are worked on at once: bounds the memory for the experts' results.
constexpr index_t kTokensAtOnce = 1024;

}  // namespace

void attention_inputs(const AttentionInputs& a, float* qr, float* q, float* kv) {
    thread_local std::vector<Product> products;
    const Entering& from = a.from;
    const index_t tokens = from.tokens, rank = a.wq_a.rows;
    hc_next(nullptr, Type::F32, tokens, from.n, from.width, from.entry, const_cast<float*>(from.streams));
    const Activations x = rows_of(static_cast<const float*>(from.entry.input), tokens, from.width);
    products.assign({{a.wq_a, a.to_wq_a, qr, 0}, {a.wkv, a.to_wkv, kv, 0}});
    for (const CompressorInputs& c : a.compressors) add_products(c, a.to_compressors, products);
    linears(products, x);
    rms_norm({qr, Type::F32, rank}, tokens, rank, a.q_norm.data, a.q_norm.type, a.eps, qr);
    norm_and_turn(kv, tokens, 1, a.wkv.rows, a.kv_norm, a.eps, a.angles);
    for (const CompressorInputs& c : a.compressors) add_bias(c, a.positions, tokens);
    linear(a.wq_b, rows_of(qr, tokens, rank), a.to_wq_b, q);
    norm_and_turn(q, tokens, a.heads, a.wq_b.rows / a.heads, {nullptr, Type::F32}, a.eps, a.angles);
}

void attention(const Attention& a, const AttentionOutput& out, float* y) {
    thread_local Scratch seen_memory, inner_memory;
    const index_t tokens = a.batch * a.tokens, inner_width = out.groups * out.wo_a.rows;
    float* seen = seen_memory.floats(tokens * a.heads * a.width);
    float* inner = inner_memory.floats(tokens * inner_width);
    sparse_attention(a, seen);
    rope({seen, Type::F32, a.width}, tokens, a.heads, a.width, out.angles.cos, out.angles.sin, out.angles.pairs, true,
         seen);
    grouped_linear(out.wo_a, out.groups, rows_of(seen, tokens * out.groups, a.heads * a.width / out.groups), out.to_wo_a,
                   inner);
    linear(out.wo_b, rows_of(inner, tokens, inner_width), out.to_wo_b, y);
}

void compressor_inputs(const CompressorInputs& c, Rounding rounding, const index_t* positions, const Activations& x) {
    thread_local std::vector<Product> products;
    products.clear();
    add_products(c, rounding, products);
    linears(products, x);
    add_bias(c, positions, x.count);
}

void compressor_entries(const CompressorEntries& c, float* y) {
    thread_local Scratch value_memory, score_memory;
    const index_t width = c.width, channels = c.overlapping ? 2 * width : width, blocks = c.batch * c.blocks;
    float *values = value_memory.floats(blocks * c.reach * width), *scores = score_memory.floats(blocks * c.reach * width);
    const index_t* token = c.tokens;
    for (index_t i = 0; i < blocks; ++i) {
        for (index_t j = 0; j < c.reach; ++j, ++token) {
            const auto* row = static_cast<const float*>(c.pending.at(i / c.blocks, std::max(index_t(0), *token)));
            // The first half of the channels for the block before, the second half for the block itself.
            row += c.overlapping && 2 * j >= c.reach ? width : 0;
            const index_t at = (i * c.reach + j) * width;
            std::copy(row, row + width, values + at);
            if (*token < 0)
                std::fill_n(scores + at, width, -std::numeric_limits<float>::infinity());
            else
                std::copy(row + channels, row + channels + width, scores + at);
        }
    }
    pool({values, Type::F32, width}, {scores, Type::F32, width}, blocks, c.reach, width, y);
    norm_and_turn(y, blocks, 1, width, c.norm, c.eps, c.angles);
}

void index_queries(const IndexQueries& a, const Activations& x, const Activations& qr, float* q, float* weights) {
    const index_t tokens = x.count, width = a.wq_b.rows / a.heads;
    linear(a.wq_b, qr, a.to_wq_b, q);
    const Rows rows{q, Type::F32, width};
    rope(rows, tokens, a.heads, width, a.angles.cos, a.angles.sin, a.angles.pairs, false, q);
    hadamard(rows, tokens * a.heads, width, q);
    linear(a.weights_proj, x, a.to_weights, weights);
    for (index_t i = 0; i < tokens * a.heads; ++i) weights[i] *= a.scale;
}

void add_experts(const Stacks& stacks, const Gate& gate, const SharedExpert* shared, const index_t* indices,
                 const float* weights, index_t choices, const Activations& x, float* y) {
    thread_local std::vector<Expert> visited;
    thread_local Visits visits;
    const index_t width = stacks.w2.rows;
    // One visit more where the shared expert is like the others; else it goes by itself.
    const bool joins = shared && shared->rounding == gate.rounding && shared->w1.rows == stacks.w1.rows;
    const auto visit_shared = [&](index_t tokens) {
        const index_t at = index_t(visits.token.size());
        visited.push_back({shared->w1, shared->w3, shared->w2, at, at + tokens});
        for (index_t t = 0; t < tokens; ++t) visits.token.push_back(t), visits.weight.push_back(1.f);
    };
    for (index_t begin = 0; begin < x.count; begin += kTokensAtOnce) {
        const index_t part = std::min(kTokensAtOnce, x.count - begin);
        visited.clear(), visits.token.clear(), visits.weight.clear();
        route(stacks, indices + begin * choices, weights + begin * choices, part, choices, visited, visits);
        if (joins) visit_shared(part);
        visit_experts(visited, visits, gate, x.from(begin, part), y + begin * width);
        if (!shared || joins) continue;
        visited.clear(), visits.token.clear(), visits.weight.clear();
        visit_shared(part);
        visit_experts(visited, visits, {gate.limit, shared->rounding}, x.from(begin, part), y + begin * width);
    }
}

void moe(const MixtureOfExperts& m, const Activations& x, float* y) {
    thread_local Scratch score_memory, weight_memory, index_memory;
    const index_t n = x.count;
    float *scores = score_memory.floats(n * m.experts), *weights = weight_memory.floats(n * m.choices);
    const index_t* indices = m.chosen;
    route_scores({x.f32, Type::F32, x.columns}, n, m.router, m.experts, x.columns, scores);
    if (!indices) {
        auto* best = index_memory.get<index_t>(n * m.choices);
        choose_experts(scores, m.bias, n, m.experts, m.choices, best);
        indices = best;
    }
    weigh_experts(scores, indices, n, m.experts, m.choices, m.scaling, weights);
    std::fill(y, y + n * m.routed.w2.rows, 0.f);
    add_experts(m.routed, m.gate, &m.shared, indices, weights, m.choices, x, y);
}

void hc_moe(const StreamReturn& back, const Entering& to, const MixtureOfExperts& m, float* y) {
    thread_local Scratch stream_memory, x_memory, result_memory, post_memory, comb_memory;
    const index_t tokens = to.tokens, n = to.n, width = to.width;
    float* streams = stream_memory.floats(tokens * n * width);
    float *x = x_memory.floats(tokens * width), *result = result_memory.floats(tokens * width);
    StreamEntry entry = to.entry;
    entry.input = x, entry.post = post_memory.floats(tokens * n), entry.comb = comb_memory.floats(tokens * n * n);
    hc_next(&back, Type::F32, tokens, n, width, entry, streams);
    moe(m, rows_of(x, tokens, width), result);
    hc_post(result, streams, Type::F32, tokens, n, width, entry.post, entry.comb, y);
}

void block(const Block& b, float* y) {
    thread_local Scratch input_memory, post_memory, comb_memory, qr_memory, q_memory, out_memory;
    thread_local std::vector<Scratch> row_memory;
    AttentionInputs in = b.in;
    Attention seen = b.seen;
    const index_t tokens = in.from.tokens, n = in.from.n, width = in.from.width;
    StreamEntry& entry = in.from.entry;
    entry.input = input_memory.floats(tokens * width);
    entry.post = post_memory.floats(tokens * n), entry.comb = comb_memory.floats(tokens * n * n);
    if (row_memory.size() < b.slots.size()) row_memory.resize(b.slots.size());
    float *qr = qr_memory.floats(tokens * in.wq_a.rows), *q = q_memory.floats(tokens * in.wq_b.rows);
    float* kv = row_memory[0].floats(tokens * in.wkv.rows);
    for (std::size_t i = 0; i < in.compressors.size(); ++i)
        in.compressors[i].y = row_memory[i + 1].floats(tokens * 2 * in.compressors[i].wkv.rows);
    attention_inputs(in, qr, q, kv);
    put(kv, in.wkv.rows, seen, b.slots[0]);
    for (std::size_t i = 0; i < in.compressors.size(); ++i)
        put(in.compressors[i].y, 2 * in.compressors[i].wkv.rows, seen, b.slots[i + 1]);
    seen.q = {q, Type::F32, seen.width};
    float* output = out_memory.floats(tokens * width);
    attention(seen, b.out, output);
    Entering to = in.from;
    to.entry = b.to_moe;
    hc_moe({output, in.from.streams, entry.post, entry.comb}, to, b.experts, y);
}

}  // namespace fourfold
