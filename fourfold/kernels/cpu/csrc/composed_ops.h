// Several operations of the contract in one call, in float32 between them: fourfold/kernels/composed.py.
#pragma once

#include <vector>

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

// A compressor's matrices, its bias ape [m, wkv.rows], and where its rows [tokens, 2 * wkv.rows] go.
struct CompressorInputs {
    Matrix wkv, wgate;
    const float* ape;
    index_t m;
    float* y;
};

// Streams [tokens, n, width] of float32 that enter a sublayer; entry.input is its normed input x.
struct Entering {
    const float* streams;
    index_t tokens, n, width;
    StreamEntry entry;
};

struct AttentionInputs {
    Entering from;
    Matrix wq_a, wq_b, wkv;
    Rounding to_wq_a, to_wq_b, to_wkv, to_compressors;
    NormWeight q_norm, kv_norm;
    Angles angles;
    index_t heads;
    float eps;
    const index_t* positions;  // [tokens]
    std::vector<CompressorInputs> compressors;
};
// The entry's x -> qr [tokens, wq_a.rows], q [tokens, heads, C], kv [tokens, C], and the compressors' rows.
void attention_inputs(const AttentionInputs& a, float* qr, float* q, float* kv);

struct AttentionOutput {
    Matrix wo_a, wo_b;  // the first of the groups' matrices; one
    Rounding to_wo_a, to_wo_b;
    Angles angles;
    index_t groups;
};
// Queries of float32 to the layer's output y [tokens, wo_b.rows].
void attention(const Attention& a, const AttentionOutput& out, float* y);

// x -> rows: wkv x, then wgate x + ape of the token's position.
void compressor_inputs(const CompressorInputs& c, Rounding rounding, const index_t* positions, const Activations& x);

// Blocks of rows that compressor_inputs made, and what becomes of them.
struct CompressorEntries {
    Buffer pending;         // [batch, ..., 2 * channels] f32
    const index_t* tokens;  // [batch, blocks, reach], checked; -1: none
    index_t batch, blocks, reach, width;
    bool overlapping;       // channels = 2 * width; else width
    NormWeight norm;
    Angles angles;
    float eps;
};
// Pooled, normed and turned: y [batch, blocks, width].
void compressor_entries(const CompressorEntries& c, float* y);

struct IndexQueries {
    Matrix wq_b, weights_proj;
    Rounding to_wq_b, to_weights;
    Angles angles;
    index_t heads;
    float scale;
};
// qr -> q [tokens, heads, C], turned and transformed; x -> weights [tokens, heads], scaled.
void index_queries(const IndexQueries& a, const Activations& x, const Activations& qr, float* q, float* weights);

// The expert that every token visits, last.
struct SharedExpert {
    Matrix w1, w3, w2;
    Rounding rounding;
};

struct MixtureOfExperts {
    Rows router;              // [experts, D]
    index_t experts, choices;
    const float* bias;        // [experts]; null: `chosen` says who
    const index_t* chosen;    // [tokens, choices] or null
    float scaling;
    Stacks routed;
    Gate gate;
    SharedExpert shared;
};
// hc_next, then moe, then hc_post: streams that `back` returns to -> y [tokens, n, width].  The entry's input, post and
// comb are not set.
void hc_moe(const StreamReturn& back, const Entering& to, const MixtureOfExperts& m, float* y);

// A whole block: attention_inputs, whose kv and compressors' rows go into `slots`, attention on what `seen` has besides
// the queries, and hc_moe.  The inputs' x, post and comb, the compressors' rows and the queries are not set.
struct Block {
    AttentionInputs in;
    std::vector<Buffer> slots;  // of kv, and of each compressor: [batch, tokens, width]
    Attention seen;
    AttentionOutput out;
    StreamEntry to_moe;
    MixtureOfExperts experts;
};
void block(const Block& b, float* y);

// x [tokens, D] -> y [tokens, D].
void moe(const MixtureOfExperts& m, const Activations& x, float* y);

// y += the chosen experts' results, `kTokensAtOnce` tokens at a time; with `shared` its own after them.
void add_experts(const Stacks& stacks, const Gate& gate, const SharedExpert* shared, const index_t* indices,
                 const float* weights, index_t choices, const Activations& x, float* y);

}  // namespace fourfold
