// Several operations of the contract in one call, in float32 between them: fourfold/kernels/composed.py.
#pragma once

#include "ops.h"
#include "tensor_ops.h"

namespace fourfold {

// Rotary angles [tokens, pairs].
struct Angles {
    const float *cos, *sin;
    index_t pairs;
};

// A norm's weight, float32 or bfloat16.
struct NormWeight {
    const void* data;
    Type type;
};

struct AttentionInputs {
    Matrix wq_a, wq_b, wkv;
    Rounding to_wq_a, to_wq_b, to_wkv;
    NormWeight q_norm, kv_norm;
    Angles angles;
    index_t heads;
    float eps;
};
// x [tokens, D] -> qr [tokens, wq_a.rows], q [tokens, heads, C], kv [tokens, C].
void attention_inputs(const AttentionInputs& a, const Activations& x, float* qr, float* q, float* kv);

struct AttentionOutput {
    Matrix wo_a, wo_b;  // the first of the groups' matrices; one
    Rounding to_wo_a, to_wo_b;
    Angles angles;
    index_t groups;
};
// o [tokens, heads, width] -> y [tokens, wo_b.rows].
void attention_output(const AttentionOutput& a, const float* o, index_t tokens, index_t heads, index_t width, float* y);

// x -> y [tokens, 2C]: wkv x, then wgate x + ape [m, C] of the token's position.
void compressor_inputs(const Matrix& wkv, const Matrix& wgate, Rounding rounding, const float* ape, index_t m,
                       const index_t* positions, const Activations& x, float* y);

}  // namespace fourfold
