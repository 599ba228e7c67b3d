// The matrix-vector product for one instruction set, as a template over its vector type `S`.
// Included by the kernel_*.cpp, each with its own flags, hence the
// unnamed namespace: an inline function compiled for AVX-512 must never be linked into the scalar build.
//
// S provides: lanes, F with zero/load/broadcast/fma/sum,
//   height<M>, the rows of the matrix that go with M rows of x in its registers;
//   Codes and codes(p), e2m1<s>(codes): nibble s of each 32-bit word as float; scales(p): e8m0, 4 lanes each;
//   e4m3(p, F[32 / lanes]): 32 bytes as float times e4m3_unit; Nan: remembers whether a byte
//   was a NaN, for seen(nan); bf16(p): `lanes` bfloat16 as float.
#pragma once

#include <cstring>
#include <limits>

#include "matrix.h"

namespace fourfold {
namespace {

inline float e8m0(std::uint8_t e) {
    std::uint32_t bits = e == 255 ? 0x7fc00000u : e == 0 ? 0x00400000u : std::uint32_t{e} << 23;
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

inline float block_scale(const Matrix& matrix, const std::uint8_t* row, index_t block) {
    if (!matrix.float_scale) return e8m0(row[block]);
    float value;
    std::memcpy(&value, row + 4 * block, sizeof value);
    return value;
}

// Below: R rows of the matrix times M rows of x, one accumulator for each pair.  Within a chunk products are
// summed unscaled (stored values are small exact multiples of the scale), then the chunk's sum times its scale
// joins the accumulator.  All of it must be inlined: an accumulator in memory costs more than the product.
#define FOURFOLD_INLINE inline __attribute__((always_inline))

// How far ahead of a row's codes to fetch: the same place among the next R rows, or of those at least a page on.
// The processor's own prefetching gives up where R short rows are read side by side.
template <int R>
index_t distance_ahead(const Matrix& matrix) {
    const index_t step = R * matrix.row_bytes();
    return ceil_div(4096, step) * step;
}

FOURFOLD_INLINE void fetch(const std::uint8_t* p, index_t bytes) {
    for (index_t i = 0; i < bytes; i += 64) __builtin_prefetch(p + i);
}

template <class S, int s, int R, int M>
FOURFOLD_INLINE void fp4_nibble(const typename S::Codes (&codes)[R], typename S::F (&part)[R][M],
                                const float* const* x, index_t k) {
    for (int r = 0; r < R; ++r) {
        const typename S::F w = S::template e2m1<s>(codes[r]);
        for (int m = 0; m < M; ++m) part[r][m] = S::fma(w, S::load(x[m] + k + s * S::lanes), part[r][m]);
    }
}

template <class S, int R, int M>
FOURFOLD_INLINE void fp4_chunk(const std::uint8_t* const (&weight)[R], const std::uint8_t* const (&scale)[R],
                               const float* const* x, index_t k, typename S::F (&total)[R][M]) {
    typename S::Codes codes[R];
    typename S::F part[R][M];
    for (int r = 0; r < R; ++r) {
        codes[r] = S::codes(weight[r]);
        for (int m = 0; m < M; ++m) part[r][m] = S::zero();
    }
    fp4_nibble<S, 0, R, M>(codes, part, x, k);
    fp4_nibble<S, 1, R, M>(codes, part, x, k);
    fp4_nibble<S, 2, R, M>(codes, part, x, k);
    fp4_nibble<S, 3, R, M>(codes, part, x, k);
    fp4_nibble<S, 4, R, M>(codes, part, x, k);
    fp4_nibble<S, 5, R, M>(codes, part, x, k);
    fp4_nibble<S, 6, R, M>(codes, part, x, k);
    fp4_nibble<S, 7, R, M>(codes, part, x, k);
    for (int r = 0; r < R; ++r) {
        const typename S::F unit = S::scales(scale[r]);
        for (int m = 0; m < M; ++m) total[r][m] = S::fma(part[r][m], unit, total[r][m]);
    }
}

template <class S, int R, int M>
void fp4_rows(const Matrix& matrix, index_t row, const float* const* x_rows, float* const* y) {
    constexpr index_t chunk = 8 * S::lanes;
    const index_t ahead = distance_ahead<R>(matrix);
    const std::uint8_t *weight[R], *scale[R];
    const float* x[M];
    typename S::F total[R][M];
    for (int m = 0; m < M; ++m) x[m] = x_rows[m];
    for (int r = 0; r < R; ++r) {
        weight[r] = matrix.weight + (row + r) * matrix.row_bytes();
        scale[r] = matrix.scale + (row + r) * matrix.scales_per_row();
        for (int m = 0; m < M; ++m) total[r][m] = S::zero();
    }
    index_t k = 0;
    for (; k + chunk <= matrix.columns; k += chunk) {
        for (int r = 0; r < R; ++r) fetch(weight[r] + ahead, chunk / 2);
        fp4_chunk<S, R, M>(weight, scale, x, k, total);
        for (int r = 0; r < R; ++r) weight[r] += chunk / 2, scale[r] += chunk / kFp4Group;
    }
    if (const index_t rest = matrix.columns - k) {
        std::uint8_t codes[R][chunk / 2] = {}, exponents[R][chunk / kFp4Group] = {};
        for (int r = 0; r < R; ++r) {
            std::memcpy(codes[r], weight[r], rest / 2);
            std::memcpy(exponents[r], scale[r], rest / kFp4Group);
            weight[r] = codes[r], scale[r] = exponents[r];
        }
        fp4_chunk<S, R, M>(weight, scale, x, k, total);
    }
    for (int r = 0; r < R; ++r)
        for (int m = 0; m < M; ++m) y[m][row + r] = S::sum(total[r][m]);
}

template <class S, int R, int M>
FOURFOLD_INLINE void fp8_block(const std::uint8_t* const (&weight)[R], const float (&scale)[R],
                               const float* const* x, index_t k, typename S::Nan (&nan)[R],
                               typename S::F (&total)[R][M]) {
    constexpr int vectors = 32 / S::lanes;
    typename S::F part[R][M];
    for (int r = 0; r < R; ++r)
        for (int m = 0; m < M; ++m) part[r][m] = S::zero();
    for (index_t i = 0; i < kFp8Block; i += 32) {
        for (int r = 0; r < R; ++r) {
            typename S::F w[vectors];
            S::e4m3(weight[r] + i, w, nan[r]);
            for (int v = 0; v < vectors; ++v)
                for (int m = 0; m < M; ++m)
                    part[r][m] = S::fma(w[v], S::load(x[m] + k + i + v * S::lanes), part[r][m]);
        }
    }
    for (int r = 0; r < R; ++r)
        for (int m = 0; m < M; ++m) total[r][m] = S::fma(part[r][m], S::broadcast(scale[r]), total[r][m]);
}

template <class S, int R, int M>
void fp8_rows(const Matrix& matrix, index_t row, const float* const* x_rows, float* const* y) {
    const index_t ahead = distance_ahead<R>(matrix);
    const index_t scale_stride = matrix.scales_per_row() * (matrix.float_scale ? 4 : 1);
    const std::uint8_t *weight[R], *scales[R];
    const float* x[M];
    float scale[R];
    typename S::Nan nan[R];
    typename S::F total[R][M];
    for (int m = 0; m < M; ++m) x[m] = x_rows[m];
    for (int r = 0; r < R; ++r) {
        weight[r] = matrix.weight + (row + r) * matrix.row_bytes();
        scales[r] = matrix.scale + (row + r) / kFp8Block * scale_stride;
        for (int m = 0; m < M; ++m) total[r][m] = S::zero();
    }
    index_t k = 0, block = 0;
    for (; k + kFp8Block <= matrix.columns; k += kFp8Block, ++block) {
        for (int r = 0; r < R; ++r) {
            scale[r] = block_scale(matrix, scales[r], block);
            fetch(weight[r] + ahead, kFp8Block);
        }
        fp8_block<S, R, M>(weight, scale, x, k, nan, total);
        for (int r = 0; r < R; ++r) weight[r] += kFp8Block;
    }
    if (const index_t rest = matrix.columns - k) {
        std::uint8_t codes[R][kFp8Block] = {};
        for (int r = 0; r < R; ++r) {
            std::memcpy(codes[r], weight[r], rest);
            weight[r] = codes[r];
            scale[r] = block_scale(matrix, scales[r], block);
        }
        fp8_block<S, R, M>(weight, scale, x, k, nan, total);
    }
    for (int r = 0; r < R; ++r)
        for (int m = 0; m < M; ++m)
            y[m][row + r] = S::seen(nan[r]) ? std::numeric_limits<float>::quiet_NaN()
                                            : S::sum(total[r][m]) * S::e4m3_unit;
}

// Two sums for each pair of rows, or a single row would wait for its own additions.
template <class S, bool wide, int R, int M>
void plain_rows(const Matrix& matrix, index_t row, const float* const* x_rows, float* const* y) {
    constexpr index_t chunk = 2 * S::lanes, size = wide ? 4 : 2;
    const index_t ahead = distance_ahead<R>(matrix);
    const auto load = [](const std::uint8_t* p) {
        if constexpr (wide)
            return S::load(reinterpret_cast<const float*>(p));
        else
            return S::bf16(reinterpret_cast<const bf16_t*>(p));
    };
    typename S::F total[R][M][2];
    for (int r = 0; r < R; ++r)
        for (int m = 0; m < M; ++m) total[r][m][0] = total[r][m][1] = S::zero();
    for (index_t k = 0; k < matrix.columns; k += chunk) {
        for (int r = 0; r < R; ++r) {
            const std::uint8_t* p = matrix.weight + (row + r) * matrix.row_bytes() + k * size;
            alignas(64) std::uint8_t rest[chunk * size];
            if (k + chunk > matrix.columns) {
                std::memset(rest, 0, sizeof rest);
                std::memcpy(rest, p, (matrix.columns - k) * size);
                p = rest;
            } else {
                fetch(p + ahead, chunk * size);
            }
            for (int half = 0; half < 2; ++half) {
                const typename S::F w = load(p + half * S::lanes * size);
                for (int m = 0; m < M; ++m)
                    total[r][m][half] = S::fma(w, S::load(x_rows[m] + k + half * S::lanes), total[r][m][half]);
            }
        }
    }
    for (int r = 0; r < R; ++r)
        for (int m = 0; m < M; ++m) y[m][row + r] = S::sum(total[r][m][0]) + S::sum(total[r][m][1]);
}

template <class S, int R, int M>
void some_rows(const Matrix& matrix, index_t row, const float* const* x, float* const* y) {
    switch (matrix.format) {
        case Format::Fp4:
            return fp4_rows<S, R, M>(matrix, row, x, y);
        case Format::Fp8:
            return fp8_rows<S, R, M>(matrix, row, x, y);
        case Format::Bf16:
            return plain_rows<S, false, R, M>(matrix, row, x, y);
        case Format::F32:
            return plain_rows<S, true, R, M>(matrix, row, x, y);
    }
}

template <class S, int M>
void strip(const Matrix& matrix, index_t begin, index_t end, const float* const* x, float* const* y) {
    constexpr int R = S::template height<M>;
    for (; begin + R <= end; begin += R) some_rows<S, R, M>(matrix, begin, x, y);
    for (; begin < end; ++begin) some_rows<S, 1, M>(matrix, begin, x, y);
}

template <class S>
void rows(const Matrix& matrix, index_t begin, index_t end, const float* const* x, float* const* y, index_t n) {
    for (; n >= 4; n -= 4, x += 4, y += 4) strip<S, 4>(matrix, begin, end, x, y);
    if (n == 3) strip<S, 3>(matrix, begin, end, x, y);
    if (n == 2) strip<S, 2>(matrix, begin, end, x, y);
    if (n == 1) strip<S, 1>(matrix, begin, end, x, y);
}

// Fp4: nibble s of word j is column 8j + s of the chunk, and is met as vector s, lane j.
template <class S>
void pack(Format format, const float* x, index_t columns, float* packed) {
    const index_t width = packed_width(columns);
    if (format != Format::Fp4) {
        std::memcpy(packed, x, columns * sizeof(float));
        std::memset(packed + columns, 0, (width - columns) * sizeof(float));
        return;
    }
    constexpr index_t chunk = 8 * S::lanes;
    const index_t whole = columns / chunk * chunk;
    for (index_t k = 0; k < whole; k += chunk)
        for (int s = 0; s < 8; ++s)
            for (int j = 0; j < S::lanes; ++j) packed[k + s * S::lanes + j] = x[k + 8 * j + s];
    std::memset(packed + whole, 0, (width - whole) * sizeof(float));
    for (index_t k = whole; k < columns; ++k) {
        const index_t i = k - whole;
        packed[whole + i % 8 * S::lanes + i / 8] = x[k];
    }
}

inline float from_bits(std::uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

inline std::uint32_t to_bits(float value) {
    std::uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}

// To the nearest bfloat16, ties to even; a NaN stays one.
void to_bf16(const float* x, index_t count, bf16_t* out) {
    for (index_t i = 0; i < count; ++i) {
        const std::uint32_t bits = to_bits(x[i]);
        const std::uint32_t rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
        out[i] = bf16_t(x[i] == x[i] ? rounded : bits >> 16 | 0x40);
    }
}

// formats.round_fp8 with groups of 128: scale 2^ceil(log2(amax / 448)), amax at least 1e-4.
void round_fp8(const float* x, index_t count, float* out) {
    for (index_t begin = 0; begin < count; begin += kFp8Block) {
        const index_t end = begin + kFp8Block < count ? begin + kFp8Block : count;
        std::uint32_t most = to_bits(1e-4f);  // magnitudes compare as their bits do
        for (index_t i = begin; i < end; ++i) {
            const std::uint32_t magnitude = to_bits(x[i]) & 0x7fffffff;
            most = magnitude > most ? magnitude : most;
        }
        const std::uint32_t ratio = to_bits(from_bits(most) / 448.f);
        const std::uint32_t exponent = (ratio >> 23) + ((ratio & 0x7fffff) != 0);
        const float scale = from_bits(exponent << 23), inverse = from_bits((254 - exponent) << 23);
        for (index_t i = begin; i < end; ++i) {
            const float v = x[i] * inverse;
            const std::uint32_t bits = to_bits(v), magnitude = bits & 0x7fffffff;
            // Three bits of mantissa; below 2^-6 multiples of 2^-9, the spacing of floats near 2^14.
            const float normal = from_bits((magnitude + 0x7ffff + (magnitude >> 20 & 1)) & 0xfff00000u);
            const float small = (from_bits(magnitude) + 16384.f) - 16384.f;
            const float rounded = magnitude < 0x3c800000u ? small : normal;
            out[i] = from_bits(to_bits(rounded) | (bits & 0x80000000u)) * scale;
        }
    }
}

// e^x within 2 units of the last place, without branches so that compilers vectorise it.
inline float exp_of(float x) {
    x = x < -87.f ? -87.f : x > 88.f ? 88.f : x;
    const float n = (x * 1.44269504f + 12582912.f) - 12582912.f;  // to the nearest integer
    const float r = (x - n * 0.693359375f) - n * -2.12194440e-4f;
    float p = 1.98412698e-4f;
    p = p * r + 1.38888889e-3f;
    p = p * r + 8.33333333e-3f;
    p = p * r + 4.16666667e-2f;
    p = p * r + 1.66666667e-1f;
    p = p * r + 0.5f;
    const float e = (p * r * r + r) + 1.f;
    return e * from_bits(std::uint32_t(int(n) + 127) << 23);
}

// gate = weight * silu(min(gate, limit)) * clamp(up, -limit, limit)
void swiglu(float* gate, const float* up, index_t count, float limit, float weight) {
    for (index_t i = 0; i < count; ++i) {
        const float g = gate[i] > limit ? limit : gate[i];
        const float u = up[i] > limit ? limit : up[i] < -limit ? -limit : up[i];
        gate[i] = g / (1.f + exp_of(-g)) * u * weight;
    }
}

}  // namespace
}  // namespace fourfold
