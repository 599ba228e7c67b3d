// A stored matrix, and what one instruction set knows how to do with it.
#pragma once

#include <cstdint>

namespace fourfold {

using index_t = std::int64_t;

enum class Format { Fp4, Fp8 };

constexpr index_t kFp8Block = 128;  // edge of the FP8 block that shares a scale
constexpr index_t kFp4Group = 32;   // FP4 values along K that share a scale

constexpr index_t ceil_div(index_t a, index_t b) { return (a + b - 1) / b; }
constexpr index_t round_up(index_t a, index_t b) { return ceil_div(a, b) * b; }

// [rows, columns] row by row.  Fp4: two e2m1 a byte along columns, low nibble first, one e8m0 scale per 32.
// Fp8: one e4m3 a byte, one scale per 128x128 block, e8m0 or float32.
struct Matrix {
    Format format;
    index_t rows, columns;
    const std::uint8_t* weight;
    const std::uint8_t* scale;
    bool float_scale;

    index_t row_bytes() const { return format == Format::Fp4 ? columns / 2 : columns; }
    index_t scales_per_row() const { return ceil_div(columns, format == Format::Fp4 ? kFp4Group : kFp8Block); }
    index_t scale_rows() const { return format == Format::Fp4 ? rows : ceil_div(rows, kFp8Block); }
    index_t scale_bytes() const { return scale_rows() * scales_per_row() * (float_scale ? 4 : 1); }
    // The same-shaped matrix that lies `i` matrices further in a stack.
    Matrix operator[](index_t i) const {
        Matrix m = *this;
        m.weight += i * rows * row_bytes();
        m.scale += i * scale_bytes();
        return m;
    }
};

// Width of a packed row of x: whole chunks for every instruction set, the rest zero.
inline index_t packed_width(index_t columns) { return round_up(columns, 128); }

// Distance between packed rows: one cache line more, or rows of 4 KiB multiples would evict each other.
inline index_t packed_stride(index_t columns) { return packed_width(columns) + 16; }

// One table per instruction set.
struct Kernels {
    const char* name;
    // x [columns] -> packed [packed_width(columns)], in the order in which `rows` meets the weights.
    void (*pack)(Format format, const float* x, index_t columns, float* packed);
    // y[i][o] = dot(matrix row o, x[i]) for begin <= o < end and i < n; x packed.  Each dot product is summed
    // in one order that depends on neither n, begin nor end, so its bits don't either.
    void (*rows)(const Matrix& matrix, index_t begin, index_t end, const float* const* x, float* const* y,
                 index_t n);
};

extern const Kernels kScalarKernels;
#ifdef FOURFOLD_X86
extern const Kernels kAvx2Kernels;
extern const Kernels kAvx512Kernels;
#endif
#ifdef FOURFOLD_ARM
extern const Kernels kNeonKernels;
#endif

}  // namespace fourfold
