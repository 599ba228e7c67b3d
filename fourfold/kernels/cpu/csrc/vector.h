// What one instruction set knows to do with rows of numbers: everything of the kernel contract that is not a
// product with a stored matrix.  tensor_ops.h is the door; it shares the work and owns the scratch memory.
//
// A row is contiguous; rows lie `stride` elements apart, results without gaps.  Every sum has one order that
// depends on the sizes of the row alone, so no result depends on how many rows there are or where they lie.
#pragma once

#include "matrix.h"

namespace fourfold {

struct bf16 {
    std::uint16_t bits;
};

enum class Type { F32, Bf16 };

// Rows of float or bf16: row i begins `i * stride` elements after data.
struct Rows {
    const void* data;
    Type type;
    index_t stride;

    index_t bytes() const { return type == Type::F32 ? 4 : 2; }
    Rows from(index_t row) const { return {at(row), type, stride}; }
    const void* at(index_t row) const { return static_cast<const char*>(data) + row * stride * bytes(); }
};

// fn [(2 + n) n, n D] (or [n, n D] at the head), scale [3] (or [1]), base: V4 report 2.2.
struct StreamMixing {
    const float* fn;
    const float* scale;
    const float* base;
    int iterations;  // of Sinkhorn-Knopp
    float norm_eps, eps;
};

constexpr index_t kSliceRows = 128, kSliceWidth = 64;
constexpr index_t kDrawPiece = 256;

// One query of sparse attention, some of its heads.
struct Query {
    const float* q;           // [heads, width]
    const float* const* rows; // the visible key-value rows, window first, each [width]
    index_t count, heads, width;
    const float* sink;        // [heads]
    float scale;
    bool round_weights;       // of the softmax, to bf16, before they meet the values
    float* scores;            // scratch [heads, scores_stride(count)]
    float* slice;             // scratch [kSliceRows, kSliceWidth]
    float* out;               // [heads, width]
};

// The same with bf16 queries and rows, which matrix units multiply; width a multiple of 32.
struct NarrowQuery {
    const bf16* q;
    const bf16* const* rows;
    index_t count, heads, width;
    const float* sink;
    float scale;
    float* scratch;  // [narrow_scratch(count, heads, width)]
    float* out;
};
inline index_t narrow_scratch(index_t count, index_t heads, index_t width) {
    const index_t rows = round_up(count, 32), columns = round_up(heads, 32);
    // Scores and weights, values in pairs of rows, queries, a group of rows, a square of results.
    return rows * columns + rows * columns / 2 + rows * width / 2 + columns * width / 2 + 16 * width + 1024;
}

// A vector more than a multiple of every vector length, so that heads do not evict each other's scores.
inline index_t scores_stride(index_t count) { return round_up(count, 16) + 16; }

// Rows of x that `dots` takes at a time, rows of w, and elements of these; its scratch holds a vector for each pair
// of four rows of x with these of w.
constexpr index_t kDotsX = 64, kDotsW = 24, kDotsStretch = 1024;
constexpr index_t kDotsScratch = 4 * kDotsW * 16;

struct VectorKernels {
    // y = x as float, on the grid of bf16 if `rounded`.
    void (*widen)(const void* x, Type type, index_t n, bool rounded, float* y);
    void (*narrow)(const float* x, index_t n, bf16* y);
    void (*rms_norm)(Rows x, index_t n, index_t width, const void* weight, Type weight_type, float eps, void* y);
    // scratch [2 * 2 * pairs]
    void (*rope)(Rows x, index_t tokens, index_t heads, index_t width, const float* cos, const float* sin,
                 index_t pairs, bool inverse, float* scratch, void* y);
    void (*hadamard)(Rows x, index_t n, index_t width, float* scratch, void* y);  // scratch [width]
    void (*round_fp8)(Rows x, index_t n, index_t width, index_t group, void* y);
    void (*round_fp4)(Rows x, index_t n, index_t width, index_t group, void* y);
    // One row of `body` codes of 8 or 4 bits (formats.unpack_rows) and the scales behind them -> y [body].
    void (*decode_row)(const std::uint8_t* packed, index_t body, int bits, bf16* y);
    void (*pool)(Rows values, Rows scores, index_t blocks, index_t m, index_t width, float* y);
    // y[i][o] = dot(x[i], w[o]), rows of y y_stride apart, x float; scratch [kDotsScratch]
    void (*dots)(Rows x, index_t n, Rows w, index_t outputs, index_t width, float* scratch, float* y,
                 index_t y_stride);
    float (*mean_square)(const void* x, Type type, index_t n);
    void (*sqrt_softplus)(float* x, index_t n);
    // mix [tokens, (2 + n) n] -> pre, post [tokens, n], comb [tokens, n, n]; scratch [16 * (2 + n) * n]
    void (*stream_weights)(const StreamMixing& mixing, index_t n, const float* mix, index_t tokens, float* scratch,
                           float* pre, float* post, float* comb);
    // mix [n] -> pre [n]
    void (*head_weights)(const StreamMixing& mixing, index_t n, const float* mix, float* pre);
    void (*weighted_sum)(const float* pre, const void* streams, Type type, index_t n, index_t width, void* y);
    void (*hc_post)(const void* output, const void* streams, Type type, const float* post, const float* comb,
                    index_t n, index_t width, void* y);
    void (*attend)(const Query& query);
    // scores[i] = sum over heads of weights[h] relu(q[h] . keys[i]); weights [4 * heads rounded up to 4], each
    // group of four heads as `spread` laid it out; scratch [32 * round_up(width, 16)]
    void (*index_scores)(const float* q, const float* weights, index_t heads, index_t width, Rows keys, index_t n,
                         float* scratch, float* scores);
    void (*spread)(const void* weights, Type type, index_t heads, float* spread);
    // For tokens first .. first + n - 1, n <= kDrawPiece: e^((logit - peak) / temperature) over the token's wait.
    void (*race)(const float* logits, index_t first, index_t n, float peak, float temperature, std::uint64_t key,
                 float* y);
    // Matrix units' own, null where there are none.  Softmax weights are rounded to bf16.
    void (*attend_narrow)(const NarrowQuery& query);
    // q [heads, width], weights [heads]; scratch [round_up(heads, 16) * (width / 2 + 17) + 8 * width + 256]
    void (*index_scores_narrow)(const bf16* q, const float* weights, index_t heads, index_t width, Rows keys,
                                index_t n, float* scratch, float* scores);
};

// Those of the instruction set that is in use.
const VectorKernels& vector_kernels();

extern const VectorKernels kScalarVectors;
#ifdef FOURFOLD_X86
extern const VectorKernels kAvx2Vectors;
extern const VectorKernels kAvx512Vectors;
#ifdef FOURFOLD_AMX
extern const VectorKernels kAmxVectors;  // AVX-512's, and matrix units for bf16
#endif
#endif
#ifdef FOURFOLD_ARM
extern const VectorKernels kNeonVectors;
#endif

}  // namespace fourfold
