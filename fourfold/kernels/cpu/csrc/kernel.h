// The matrix-vector product for one instruction set, as a template over its vector type `S`.
// Included by kernel_scalar.cpp, kernel_avx2.cpp and kernel_avx512.cpp, each with its own flags, hence the
// unnamed namespace: an inline function compiled for AVX-512 must never be linked into the scalar build.
//
// S provides: lanes, tile (most rows of x at once), F with zero/load/broadcast/fma/sum,
//   Codes and codes(p), e2m1<s>(codes): nibble s of each 32-bit word as float; scales(p): e8m0, 4 lanes each;
//   e4m3(p, F[32 / lanes]): 32 bytes as float times e4m3_unit; Nan: remembers whether a byte was a NaN.
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

// R rows of the matrix times M rows of x, one accumulator for each pair.  Within a chunk products are summed
// unscaled (they are exact small multiples of x), then the chunk's sum times its scale joins the accumulator.
template <class S, int R, int M>
struct Fp4Rows {
    using F = typename S::F;
    static constexpr index_t kChunk = 8 * S::lanes;
    F total[R][M];

    template <int s>
    void nibble(const typename S::Codes (&codes)[R], F (&part)[R][M], const float* const* x, index_t k) {
        for (int r = 0; r < R; ++r) {
            F w = S::template e2m1<s>(codes[r]);
            for (int m = 0; m < M; ++m) {
                F v = S::load(x[m] + k + s * S::lanes);
                part[r][m] = S::fma(w, v, part[r][m]);
            }
        }
    }

    void chunk(const std::uint8_t* const (&weight)[R], const std::uint8_t* const (&scale)[R],
               const float* const* x, index_t k) {
        typename S::Codes codes[R];
        F part[R][M];
        for (int r = 0; r < R; ++r) {
            codes[r] = S::codes(weight[r]);
            for (int m = 0; m < M; ++m) part[r][m] = S::zero();
        }
        nibble<0>(codes, part, x, k);
        nibble<1>(codes, part, x, k);
        nibble<2>(codes, part, x, k);
        nibble<3>(codes, part, x, k);
        nibble<4>(codes, part, x, k);
        nibble<5>(codes, part, x, k);
        nibble<6>(codes, part, x, k);
        nibble<7>(codes, part, x, k);
        for (int r = 0; r < R; ++r) {
            F unit = S::scales(scale[r]);
            for (int m = 0; m < M; ++m) total[r][m] = S::fma(part[r][m], unit, total[r][m]);
        }
    }

    void run(const Matrix& matrix, index_t row, const float* const* x, float* const* y) {
        const std::uint8_t *weight[R], *scale[R];
        for (int r = 0; r < R; ++r) {
            weight[r] = matrix.weight + (row + r) * matrix.row_bytes();
            scale[r] = matrix.scale + (row + r) * matrix.scales_per_row();
            for (int m = 0; m < M; ++m) total[r][m] = S::zero();
        }
        index_t k = 0;
        for (; k + kChunk <= matrix.columns; k += kChunk) {
            chunk(weight, scale, x, k);
            for (int r = 0; r < R; ++r) weight[r] += kChunk / 2, scale[r] += kChunk / kFp4Group;
        }
        if (index_t rest = matrix.columns - k) {
            std::uint8_t codes[R][kChunk / 2] = {}, exponents[R][kChunk / kFp4Group] = {};
            for (int r = 0; r < R; ++r) {
                std::memcpy(codes[r], weight[r], rest / 2);
                std::memcpy(exponents[r], scale[r], rest / kFp4Group);
                weight[r] = codes[r], scale[r] = exponents[r];
            }
            chunk(weight, scale, x, k);
        }
        for (int r = 0; r < R; ++r)
            for (int m = 0; m < M; ++m) y[m][row + r] = S::sum(total[r][m]);
    }
};

template <class S, int R, int M>
struct Fp8Rows {
    using F = typename S::F;
    static constexpr int kVectors = 32 / S::lanes;
    F total[R][M];
    typename S::Nan nan[R];

    void block(const std::uint8_t* const (&weight)[R], const float (&scale)[R], const float* const* x,
               index_t k) {
        F part[R][M];
        for (int r = 0; r < R; ++r)
            for (int m = 0; m < M; ++m) part[r][m] = S::zero();
        for (index_t i = 0; i < kFp8Block; i += 32) {
            for (int r = 0; r < R; ++r) {
                F w[kVectors];
                S::e4m3(weight[r] + i, w, nan[r]);
                for (int v = 0; v < kVectors; ++v)
                    for (int m = 0; m < M; ++m)
                        part[r][m] = S::fma(w[v], S::load(x[m] + k + i + v * S::lanes), part[r][m]);
            }
        }
        for (int r = 0; r < R; ++r)
            for (int m = 0; m < M; ++m)
                total[r][m] = S::fma(part[r][m], S::broadcast(scale[r]), total[r][m]);
    }

    void run(const Matrix& matrix, index_t row, const float* const* x, float* const* y) {
        const std::uint8_t *weight[R], *scale_row[R];
        const index_t scale_stride = matrix.scales_per_row() * (matrix.float_scale ? 4 : 1);
        float scale[R];
        for (int r = 0; r < R; ++r) {
            weight[r] = matrix.weight + (row + r) * matrix.row_bytes();
            scale_row[r] = matrix.scale + (row + r) / kFp8Block * scale_stride;
            nan[r] = {};
            for (int m = 0; m < M; ++m) total[r][m] = S::zero();
        }
        for (index_t k = 0; k < matrix.columns; k += kFp8Block) {
            std::uint8_t padded[R][kFp8Block];
            const index_t rest = matrix.columns - k;
            for (int r = 0; r < R; ++r) {
                scale[r] = block_scale(matrix, scale_row[r], k / kFp8Block);
                if (rest < kFp8Block) {
                    std::memset(padded[r], 0, kFp8Block);
                    std::memcpy(padded[r], weight[r], rest);
                    weight[r] = padded[r];
                }
            }
            block(weight, scale, x, k);
            for (int r = 0; r < R; ++r) weight[r] += kFp8Block;
        }
        for (int r = 0; r < R; ++r)
            for (int m = 0; m < M; ++m)
                y[m][row + r] = S::seen(nan[r]) ? std::numeric_limits<float>::quiet_NaN()
                                                : S::sum(total[r][m]) * S::e4m3_unit;
    }
};

template <class S, template <class, int, int> class Rows, int M>
void strip(const Matrix& matrix, index_t begin, index_t end, const float* const* x, float* const* y) {
    constexpr int R = S::template height<M>;
    for (; begin + R <= end; begin += R) Rows<S, R, M>{}.run(matrix, begin, x, y);
    for (; begin < end; ++begin) Rows<S, 1, M>{}.run(matrix, begin, x, y);
}

template <class S, template <class, int, int> class Rows>
void all_rows(const Matrix& matrix, index_t begin, index_t end, const float* const* x, float* const* y,
              index_t n) {
    for (; n >= 4; n -= 4, x += 4, y += 4) strip<S, Rows, 4>(matrix, begin, end, x, y);
    if (n == 3) strip<S, Rows, 3>(matrix, begin, end, x, y);
    if (n == 2) strip<S, Rows, 2>(matrix, begin, end, x, y);
    if (n == 1) strip<S, Rows, 1>(matrix, begin, end, x, y);
}

template <class S>
void rows(const Matrix& matrix, index_t begin, index_t end, const float* const* x, float* const* y, index_t n) {
    if (matrix.format == Format::Fp4)
        all_rows<S, Fp4Rows>(matrix, begin, end, x, y, n);
    else
        all_rows<S, Fp8Rows>(matrix, begin, end, x, y, n);
}

// Fp4: nibble s of word j is column 8j + s of the chunk, and is met as vector s, lane j.
template <class S>
void pack(Format format, const float* x, index_t columns, float* packed) {
    const index_t width = packed_width(columns);
    if (format == Format::Fp8) {
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

}  // namespace
}  // namespace fourfold
