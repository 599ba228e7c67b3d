#include "tensor_ops.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "scratch.h"
#include "sharing.h"

namespace fourfold {
namespace {

void* row_of(void* y, Type type, index_t element) {
    return static_cast<char*>(y) + element * (type == Type::F32 ? 4 : 2);
}

// x as contiguous float rows, in scratch unless it already is.
Rows as_float(Rows x, index_t n, index_t width, Scratch& scratch) {
    if (x.type == Type::F32) return x;
    float* wide = scratch.floats(n * width);
    for (index_t i = 0; i < n; ++i)
        vector_kernels().widen(x.at(i), x.type, width, false, wide + i * width);
    return {wide, Type::F32, width};
}

bool is_nan(float v) { return v != v; }

// Tokens whose streams stay in the cache from the mixing product to the weighted sum.
constexpr index_t kTokensAPiece = 16;

// The mixing product of up to kTokensAPiece tokens, each divided by the rms of its streams -> mix [tokens, outputs].
void mix_streams(Rows streams, index_t tokens, index_t length, const StreamMixing& mixing, index_t outputs,
                 float* mix) {
    thread_local Scratch wide_memory, chains;
    const VectorKernels& v = vector_kernels();
    const Rows x = as_float(streams, tokens, length, wide_memory);
    // First what reads the streams from end to end: it brings them into the cache.
    float factor[kTokensAPiece];
    for (index_t t = 0; t < tokens; ++t)
        factor[t] = 1.f / std::sqrt(v.mean_square(x.at(t), Type::F32, length) + mixing.norm_eps);
    v.dots(x, tokens, {mixing.fn, Type::F32, length}, outputs, length, chains.floats(kDotsScratch), mix, outputs);
    for (index_t t = 0; t < tokens; ++t)
        for (index_t i = 0; i < outputs; ++i) mix[t * outputs + i] *= factor[t];
}

// hc_pre for up to kTokensAPiece tokens.
void read_streams(Rows streams, index_t tokens, index_t n, index_t width, const StreamMixing& mixing, void* input,
                  float* post, float* comb) {
    thread_local Scratch memory;
    const VectorKernels& v = vector_kernels();
    const index_t outputs = (2 + n) * n;
    float* mix = memory.floats(kTokensAPiece * (outputs + n) + 16 * outputs);
    float *pre = mix + kTokensAPiece * outputs, *lanes = pre + kTokensAPiece * n;
    mix_streams(streams, tokens, n * width, mixing, outputs, mix);
    v.stream_weights(mixing, n, mix, tokens, lanes, pre, post, comb);
    for (index_t t = 0; t < tokens; ++t)
        v.weighted_sum(pre + t * n, streams.at(t), streams.type, n, width, row_of(input, streams.type, t * width));
}

// hc_post for the tokens [begin, begin + count) -> y of all.
void return_to_streams(const StreamReturn& back, Type type, index_t begin, index_t count, index_t n, index_t width,
                       void* y) {
    const VectorKernels& v = vector_kernels();
    const Rows output{back.output, type, width}, streams{back.streams, type, n * width};
    for (index_t t = begin; t < begin + count; ++t)
        v.hc_post(output.at(t), streams.at(t), type, back.post + t * n, back.comb + t * n * n, n, width,
                  row_of(y, type, t * n * width));
}

template <class Piece>
void share_tokens(index_t tokens, index_t work, Piece&& piece) {
    share_rows(ceil_div(tokens, kTokensAPiece), work, [&](index_t begin, index_t end) {
        for (index_t i = begin; i < end; ++i)
            piece(i * kTokensAPiece, std::min(kTokensAPiece, tokens - i * kTokensAPiece));
    });
}

}  // namespace

void rms_norm(Rows x, index_t n, index_t width, const void* weight, Type weight_type, float eps, void* y) {
    const VectorKernels& v = vector_kernels();
    share_rows(n, n * width, [&](index_t begin, index_t end) {
        v.rms_norm(x.from(begin), end - begin, width, weight, weight_type, eps, row_of(y, x.type, begin * width));
    });
}

void rope(Rows x, index_t tokens, index_t heads, index_t width, const float* cos, const float* sin, index_t pairs,
          bool inverse, void* y) {
    const VectorKernels& v = vector_kernels();
    share_rows(tokens, tokens * heads * width, [&](index_t begin, index_t end) {
        thread_local Scratch scratch;
        v.rope(x.from(begin * heads), end - begin, heads, width, cos + begin * pairs, sin + begin * pairs, pairs,
               inverse, scratch.floats(4 * pairs), row_of(y, x.type, begin * heads * width));
    });
}

void hadamard(Rows x, index_t n, index_t width, void* y) {
    const VectorKernels& v = vector_kernels();
    share_rows(n, 2 * n * width, [&](index_t begin, index_t end) {
        thread_local Scratch scratch;
        v.hadamard(x.from(begin), end - begin, width, scratch.floats(width), row_of(y, x.type, begin * width));
    });
}

void round_fp8(Rows x, index_t n, index_t width, index_t group, void* y) {
    const VectorKernels& v = vector_kernels();
    share_rows(n, 2 * n * width, [&](index_t begin, index_t end) {
        v.round_fp8(x.from(begin), end - begin, width, group, row_of(y, x.type, begin * width));
    });
}

void round_fp4(Rows x, index_t n, index_t width, index_t group, void* y) {
    const VectorKernels& v = vector_kernels();
    share_rows(n, 2 * n * width, [&](index_t begin, index_t end) {
        v.round_fp4(x.from(begin), end - begin, width, group, row_of(y, x.type, begin * width));
    });
}

namespace {

constexpr index_t row_group(int bits) { return bits == 8 ? 64 : 32; }

std::uint32_t bits_of(float value) {
    std::uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}

// The code of a value of the grid, e4m3 or e2m1.
std::uint8_t code_of(float value, int bits) {
    const float size = std::fabs(value);
    const std::uint32_t sign = std::signbit(value) ? 1u << (bits - 1) : 0u;
    if (bits == 8) {
        const std::uint32_t code =
            size < 0x1p-6f ? std::uint32_t(size * 0x1p9f) : (bits_of(size) >> 20) - (120u << 3);
        return std::uint8_t(sign | (code & 127u));
    }
    const float twice = 2.f * size;
    const float code = twice < 4.f ? twice : twice < 8.f ? twice / 2.f + 2.f : twice / 4.f + 4.f;
    return std::uint8_t(sign | (std::uint32_t(code) & 7u));
}

// 2^ceil(log2(amax / limit)), as formats.power_of_two_scale.
std::uint32_t scale_bits(float amax, float limit) {
    const float ratio = amax / limit;
    return std::isfinite(ratio) ? (bits_of(ratio) + 0x7fffffu) & 0x7f800000u : 127u << 23;
}

// `body` rounded values -> codes and, behind those of the whole row, scales.
void encode_row(const float* x, index_t body, int bits, std::uint8_t* packed) {
    const float limit = bits == 8 ? 448.f : 6.f, floor = bits == 8 ? 1e-4f : 0x6p-126f;
    std::uint8_t* scales = packed + body * bits / 8;
    for (index_t i = 0; i < body; i += row_group(bits)) {
        const index_t end = std::min(body, i + row_group(bits));
        float amax = floor;
        bool odd = false;
        for (index_t j = i; j < end; ++j) {
            amax = std::max(amax, std::fabs(x[j]));
            odd |= std::isnan(x[j]);
        }
        const std::uint32_t scale = scale_bits(amax, limit);
        *scales++ = odd ? 255 : std::uint8_t(scale >> 23);
        float unit;
        std::memcpy(&unit, &scale, sizeof unit);
        for (index_t j = i; j < end; ++j) {
            const std::uint8_t code = odd ? 0 : code_of(x[j] / unit, bits);
            if (bits == 8)
                packed[j] = code;
            else if (j % 2 == 0)
                packed[j / 2] = code;
            else
                packed[j / 2] = std::uint8_t(packed[j / 2] | code << 4);
        }
    }
}

}  // namespace

index_t row_bytes(index_t width, index_t last, int bits) {
    const index_t body = width - last, group = row_group(bits);
    return body * bits / 8 + (body + group - 1) / group + 2 * last;
}

void pack_rows(Rows x, index_t n, index_t width, index_t last, int bits, std::uint8_t* packed) {
    const VectorKernels& v = vector_kernels();
    const index_t body = width - last, size = row_bytes(width, last, bits);
    const auto round = bits == 8 ? v.round_fp8 : v.round_fp4;
    share_rows(n, 8 * n * width, [&](index_t begin, index_t end) {
        thread_local Scratch scratch;
        float* row = scratch.floats(2 * width);
        for (index_t i = begin; i < end; ++i) {
            const Rows one = x.from(i);
            std::uint8_t* to = packed + i * size;
            v.widen(one.data, x.type, width, false, row);
            round({row, Type::F32, width}, 1, body, row_group(bits), row + width);
            encode_row(row + width, body, bits, to);
            bf16 tail[1];
            for (index_t j = 0; j < last; ++j) {
                v.narrow(row + body + j, 1, tail);
                std::memcpy(to + size - 2 * (last - j), tail, 2);
            }
        }
    });
}

void unpack_rows(const std::uint8_t* packed, const index_t* rows, index_t n, index_t width, index_t last, int bits,
                 bf16* y) {
    const VectorKernels& v = vector_kernels();
    const index_t body = width - last, size = row_bytes(width, last, bits);
    share_rows(n, n * width, [&](index_t begin, index_t end) {
        for (index_t i = begin; i < end; ++i) {
            const std::uint8_t* row = packed + rows[i] * size;
            v.decode_row(row, body, bits, y + i * width);
            if (last) std::memcpy(y + i * width + body, row + size - 2 * last, 2 * last);
        }
    });
}

void pool(Rows values, Rows scores, index_t blocks, index_t m, index_t width, float* y) {
    const VectorKernels& v = vector_kernels();
    share_rows(blocks, 4 * blocks * m * width, [&](index_t begin, index_t end) {
        v.pool(values.from(begin * m), scores.from(begin * m), end - begin, m, width, y + begin * width);
    });
}

void dots(Rows x, index_t n, Rows w, index_t outputs, index_t width, float* y) {
    thread_local Scratch wide_memory;
    const VectorKernels& v = vector_kernels();
    const Rows from = as_float(x, n, width, wide_memory);
    const auto some = [&](index_t i, index_t rows, index_t o, index_t count) {
        thread_local Scratch chains;
        v.dots(from.from(i), rows, w.from(o), count, width, chains.floats(kDotsScratch), y + i * outputs + o,
               outputs);
    };
    // Few rows of x: the weight is read once, each thread a part of it.  Many: each thread some of them.
    if (n <= kDotsX)
        share_rows(ceil_div(outputs, kDotsW), n * outputs * width, [&](index_t begin, index_t end) {
            some(0, n, begin * kDotsW, std::min(end * kDotsW, outputs) - begin * kDotsW);
        });
    else
        share_rows(ceil_div(n, kDotsX), n * outputs * width, [&](index_t begin, index_t end) {
            some(begin * kDotsX, std::min(end * kDotsX, n) - begin * kDotsX, 0, outputs);
        });
}

void route_scores(Rows x, index_t n, Rows weight, index_t experts, index_t width, float* scores) {
    dots(x, n, weight, experts, width, scores);
    vector_kernels().sqrt_softplus(scores, n * experts);
}

void choose_experts(const float* scores, const float* bias, index_t n, index_t experts, index_t k,
                    index_t* indices) {
    thread_local Scratch memory;
    float* best = memory.floats(k);
    for (; n > 0; --n, scores += experts, indices += k) {
        index_t held = 0;
        for (index_t e = 0; e < experts; ++e) {
            const float score = scores[e] + bias[e];
            // A NaN comes first: it must be seen in the result.
            const auto better = [&](float other) { return score > other || (is_nan(score) && !is_nan(other)); };
            if (held == k && !(k > 0 && better(best[k - 1]))) continue;
            index_t place = held < k ? held++ : k - 1;
            for (; place > 0 && better(best[place - 1]); --place) {
                best[place] = best[place - 1];
                indices[place] = indices[place - 1];
            }
            best[place] = score;
            indices[place] = e;
        }
    }
}

void weigh_experts(const float* scores, const index_t* indices, index_t n, index_t experts, index_t k,
                   float scaling, float* weights) {
    for (; n > 0; --n, scores += experts, indices += k, weights += k) {
        float sum = 0.f;
        for (index_t i = 0; i < k; ++i) sum += scores[indices[i]];
        for (index_t i = 0; i < k; ++i) weights[i] = scores[indices[i]] / sum * scaling;
    }
}

void hc_pre(Rows streams, index_t tokens, index_t n, index_t width, const StreamMixing& mixing, void* input,
            float* post, float* comb) {
    share_tokens(tokens, tokens * (2 + n) * n * n * width, [&](index_t begin, index_t count) {
        read_streams(streams.from(begin), count, n, width, mixing, row_of(input, streams.type, begin * width),
                     post + begin * n, comb + begin * n * n);
    });
}

void hc_next(const StreamReturn* back, Type type, index_t tokens, index_t n, index_t width, const StreamEntry& next,
             void* y) {
    const VectorKernels& v = vector_kernels();
    const Rows streams{y, type, n * width};
    share_tokens(tokens, tokens * (2 + n) * n * n * width, [&](index_t begin, index_t count) {
        if (back) return_to_streams(*back, type, begin, count, n, width, y);
        void* input = row_of(next.input, type, begin * width);
        read_streams(streams.from(begin), count, n, width, next.mixing, input, next.post + begin * n,
                     next.comb + begin * n * n);
        v.rms_norm({input, type, width}, count, width, next.norm, next.norm_type, next.mixing.norm_eps, input);
    });
}

void hc_head(Rows streams, index_t tokens, index_t n, index_t width, const StreamMixing& mixing, void* y) {
    const VectorKernels& v = vector_kernels();
    share_tokens(tokens, tokens * n * n * width, [&](index_t begin, index_t count) {
        thread_local Scratch memory;
        float* mix = memory.floats((kTokensAPiece + 1) * n);
        float* pre = mix + kTokensAPiece * n;
        const Rows x = streams.from(begin);
        mix_streams(x, count, n * width, mixing, n, mix);
        for (index_t t = 0; t < count; ++t) {
            v.head_weights(mixing, n, mix + t * n, pre);
            v.weighted_sum(pre, x.at(t), x.type, n, width, row_of(y, x.type, (begin + t) * width));
        }
    });
}

void hc_post(const void* output, const void* streams, Type type, index_t tokens, index_t n, index_t width,
             const float* post, const float* comb, void* y) {
    const StreamReturn back{output, streams, post, comb};
    share_rows(tokens, 2 * tokens * n * width, [&](index_t begin, index_t end) {
        return_to_streams(back, type, begin, end - begin, n, width, y);
    });
}

namespace {

// The largest of x [n]; NaN where one is.  Sixteen at once, as the compiler will not reorder floats by itself.
float peak_of(const float* x, index_t n) {
    constexpr index_t lanes = 16;
    constexpr float none = -std::numeric_limits<float>::infinity();
    float most[lanes];
    std::uint32_t invalid[lanes] = {};
    std::fill(most, most + lanes, none);
    const auto meet = [&](float v, index_t lane) {
        most[lane] = v > most[lane] ? v : most[lane];
        invalid[lane] |= v != v;
    };
    index_t i = 0;
    for (; i + lanes <= n; i += lanes)
        for (index_t lane = 0; lane < lanes; ++lane) meet(x[i + lane], lane);
    for (; i < n; ++i) meet(x[i], 0);
    if (std::any_of(invalid, invalid + lanes, [](std::uint32_t v) { return v != 0; }))
        return std::numeric_limits<float>::quiet_NaN();
    return *std::max_element(most, most + lanes);
}

}  // namespace

index_t draw(const float* logits, index_t n, float temperature, std::uint64_t key) {
    const float peak = peak_of(logits, n);
    if (!std::isfinite(peak)) return -1;
    if (temperature == 0.f) return std::find(logits, logits + n, peak) - logits;
    const VectorKernels& v = vector_kernels();
    alignas(64) float speeds[kDrawPiece];
    float best = -1.f;
    index_t winner = -1;
    for (index_t first = 0; first < n; first += kDrawPiece) {
        const index_t count = std::min(kDrawPiece, n - first);
        v.race(logits, first, count, peak, temperature, key, speeds);
        for (index_t i = 0; i < count; ++i)
            if (speeds[i] > best) best = speeds[i], winner = first + i;
    }
    return winner;
}

}  // namespace fourfold
