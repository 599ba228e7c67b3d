// The operations of the kernel contract that are no product with a stored matrix, on plain memory.
// Equations and shapes: fourfold/kernels/__init__.py.  Rows are contiguous inside and `stride` elements apart;
// results lie without gaps, in the type of the input unless a pointer says float.  y may be x where the strides
// agree.  Each function shares its work among the threads of the pool where that pays, and each result depends
// on its own token's data alone, not on the other rows of the call or the number of threads.
#pragma once

#include "vector.h"

namespace fourfold {

// x [n, width] / rms * weight [width] (null: none).
void rms_norm(Rows x, index_t n, index_t width, const void* weight, Type weight_type, float eps, void* y);

// x [tokens * heads, width], cos and sin [tokens, pairs]: the last 2 * pairs elements are turned.
void rope(Rows x, index_t tokens, index_t heads, index_t width, const float* cos, const float* sin, index_t pairs,
          bool inverse, void* y);

// x [n, width], width a power of two.
void hadamard(Rows x, index_t n, index_t width, void* y);

// x [n, width] on the FP8 or FP4 grid, bit for bit as formats.py.
void round_fp8(Rows x, index_t n, index_t width, index_t group, void* y);
void round_fp4(Rows x, index_t n, index_t width, index_t group, void* y);
// formats.pack_rows and unpack_rows; a row has row_bytes(width, last, bits) bytes, y [n, width].
index_t row_bytes(index_t width, index_t last, int bits);
void pack_rows(Rows x, index_t n, index_t width, index_t last, int bits, std::uint8_t* packed);
void unpack_rows(const std::uint8_t* packed, const index_t* rows, index_t n, index_t width, index_t last, int bits,
                 bf16* y);

// values, scores [blocks * m, width] f32 -> y [blocks, width].
void pool(Rows values, Rows scores, index_t blocks, index_t m, index_t width, float* y);

// y[i][o] = dot(x[i], w[o]): x [n, width], w [outputs, width] -> y [n, outputs].
void dots(Rows x, index_t n, Rows w, index_t outputs, index_t width, float* y);

// sqrt(softplus(x . w)): x [n, width], weight [experts, width] -> scores [n, experts].
void route_scores(Rows x, index_t n, Rows weight, index_t experts, index_t width, float* scores);

// The k <= experts best of scores + bias [experts], best first, equal ones in ascending order -> indices [n, k].
void choose_experts(const float* scores, const float* bias, index_t n, index_t experts, index_t k,
                    index_t* indices);

// The chosen scores, scaled to sum to `scaling` -> weights [n, k].  The indices have been checked.
void weigh_experts(const float* scores, const index_t* indices, index_t n, index_t experts, index_t k,
                   float scaling, float* weights);

constexpr index_t kMostStreams = 16;

// streams [tokens, n, width], rows n * width long -> input [tokens, width], post [tokens, n],
// comb [tokens, n, n]; n <= kMostStreams.
void hc_pre(Rows streams, index_t tokens, index_t n, index_t width, const StreamMixing& mixing, void* input,
            float* post, float* comb);

// output [tokens, width], streams [tokens, n, width] of one type, without gaps -> y as streams.
void hc_post(const void* output, const void* streams, Type type, index_t tokens, index_t n, index_t width,
             const float* post, const float* comb, void* y);

// What a sublayer leaves behind: its output [tokens, width] and how that goes back to its streams [tokens, n, width],
// all without gaps and of one type.
struct StreamReturn {
    const void *output, *streams;
    const float *post, *comb;
};

// What the next sublayer needs: its mixing, and the weight [width] of the norm of its input.
struct StreamEntry {
    StreamMixing mixing;
    const void* norm;
    Type norm_type;
    void* input;         // [tokens, width]
    float *post, *comb;  // as in hc_pre
};

// hc_post -> y [tokens, n, width], then hc_pre and rms_norm on y; without a return on y as it is.
void hc_next(const StreamReturn* back, Type type, index_t tokens, index_t n, index_t width, const StreamEntry& next,
             void* y);

// streams as in hc_pre -> y [tokens, width]; mixing.iterations is not used.
void hc_head(Rows streams, index_t tokens, index_t n, index_t width, const StreamMixing& mixing, void* y);

// A buffer [batch, rows, width] of which sequences lie batch_stride elements apart.
struct Buffer {
    Rows rows;
    index_t batch_stride;

    const void* at(index_t batch, index_t row) const {
        return static_cast<const char*>(rows.data) + (batch * batch_stride + row * rows.stride) * rows.bytes();
    }
};

// Ranges and indices have been checked against the buffers; all int64, without gaps.
struct Attention {
    Rows q;  // [batch * tokens * heads, width]
    index_t batch, tokens, heads, width;
    Buffer window;
    const index_t* window_range;  // [batch, tokens, 2]
    Buffer entries;               // of a layer without them: none of the next two
    const index_t* entry_range;   // [batch, tokens, 2] or null
    const index_t* entry_index;   // [batch, tokens, choices], -1: none; null: by range
    index_t choices;
    const float* sink;  // [heads]
    float scale;
    bool round;  // queries and softmax weights to bf16
};
void sparse_attention(const Attention& a, void* y);

struct IndexChoice {
    Rows q;  // [batch * tokens * heads, width]
    index_t batch, tokens, heads, width;
    const void* weights;  // [batch, tokens, heads]
    Type weight_type;
    Buffer keys;
    const index_t* visible;  // [batch, tokens, 2], checked
    index_t k;
};
// The k best visible keys of each query, ascending, -1 where fewer are visible -> indices [batch, tokens, k].
void index_topk(const IndexChoice& c, index_t* indices);

// The k largest of scores [n], the first of equal ones -> their places + `shift`, ascending, then -1.
void select_largest(const float* scores, index_t n, index_t k, index_t shift, index_t* indices);

// The token that logits [n] and the key draw; -1 where the largest logit is no finite number or one is NaN.
// fourfold/kernels/draw.py.
index_t draw(const float* logits, index_t n, float temperature, std::uint64_t key);

}  // namespace fourfold
