#include "composed_ops.h"

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

}  // namespace

void attention_inputs(const AttentionInputs& a, const Activations& x, float* qr, float* q, float* kv) {
    const index_t tokens = x.count, rank = a.wq_a.rows;
    linear(a.wq_a, x, a.to_wq_a, qr);
    rms_norm({qr, Type::F32, rank}, tokens, rank, a.q_norm.data, a.q_norm.type, a.eps, qr);
    linear(a.wq_b, rows_of(qr, tokens, rank), a.to_wq_b, q);
    norm_and_turn(q, tokens, a.heads, a.wq_b.rows / a.heads, {nullptr, Type::F32}, a.eps, a.angles);
    linear(a.wkv, x, a.to_wkv, kv);
    norm_and_turn(kv, tokens, 1, a.wkv.rows, a.kv_norm, a.eps, a.angles);
}

void attention_output(const AttentionOutput& a, const float* o, index_t tokens, index_t heads, index_t width, float* y) {
    thread_local Scratch turned_memory, inner_memory;
    const index_t inner_width = a.groups * a.wo_a.rows;
    float* turned = turned_memory.floats(tokens * heads * width);
    float* inner = inner_memory.floats(tokens * inner_width);
    rope({o, Type::F32, width}, tokens, heads, width, a.angles.cos, a.angles.sin, a.angles.pairs, true, turned);
    grouped_linear(a.wo_a, a.groups, rows_of(turned, tokens * a.groups, heads * width / a.groups), a.to_wo_a, inner);
    linear(a.wo_b, rows_of(inner, tokens, inner_width), a.to_wo_b, y);
}

void compressor_inputs(const Matrix& wkv, const Matrix& wgate, Rounding rounding, const float* ape, index_t m,
                       const index_t* positions, const Activations& x, float* y) {
    const index_t width = wkv.rows;
    linear(wkv, x, rounding, y, 2 * width);
    linear(wgate, x, rounding, y + width, 2 * width);
    for (index_t t = 0; t < x.count; ++t) {
        const float* bias = ape + positions[t] % m * width;
        float* scores = y + (2 * t + 1) * width;
        for (index_t i = 0; i < width; ++i) scores[i] += bias[i];
    }
}

}  // namespace fourfold
