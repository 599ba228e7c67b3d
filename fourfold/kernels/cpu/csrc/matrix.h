// A stored matrix, and what one instruction set knows how to do with it.
#pragma once

#include <cstdint>

namespace fourfold {

using index_t = std::int64_t;

enum class Format { Fp4, Fp8, Bf16, F32 };

constexpr index_t kFp8Block = 128;  // edge of the FP8 block that shares a scale
constexpr index_t kFp4Group = 32;   // FP4 values along K that share a scale

constexpr index_t ceil_div(index_t a, index_t b) { return (a + b - 1) / b; }
constexpr index_t round_up(index_t a, index_t b) { return ceil_div(a, b) * b; }

// [rows, columns] row by row.  Fp4: two e2m1 a byte along columns, low nibble first, one e8m0 scale per 32.
// Fp8: one e4m3 a byte, one scale per 128x128 block, e8m0 or float32.  Bf16 and F32 have no scale.
struct Matrix {
    Format format;
    index_t rows, columns;
    const std::uint8_t* weight;
    const std::uint8_t* scale;
    bool float_scale;

    bool scaled() const { return format == Format::Fp4 || format == Format::Fp8; }
    index_t row_bytes() const {
        return format == Format::Fp4 ? columns / 2 : columns * (format == Format::F32 ? 4 : format == Format::Bf16 ? 2 : 1);
    }
    index_t scales_per_row() const {
        return scaled() ? ceil_div(columns, format == Format::Fp4 ? kFp4Group : kFp8Block) : 0;
    }
    index_t scale_rows() const { return format == Format::Fp8 ? ceil_div(rows, kFp8Block) : rows; }
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

using bf16_t = std::uint16_t;

// Products of bfloat16 inputs in a matrix unit, with float32 sums.
struct Bf16Products {
    // Width of a row of x in bfloat16: whole steps of the unit, the rest zero.
    static index_t width(index_t columns) { return round_up(columns, 128); }
    // Can it multiply this matrix?
    static bool covers(const Matrix& m) { return m.format != Format::F32 && !m.float_scale; }
    // x [columns] -> [width], in the order in which this format's columns are met.
    void (*arrange)(Format format, const bf16_t* x, index_t columns, bf16_t* out);
    static constexpr index_t most = 16;  // rows of x that lie together
    static index_t block_height(index_t) { return most; }
    // Width of block b of n rows of x: the rows it has, or all 16 where there are many.
    static index_t block_width(index_t n, index_t b) { return n > 2 * most || n - b * most > most ? most : n - b * most; }
    // rows [count][width] -> one block [block_width x width] in the kernel's own order, zeros beyond count.  Of width 1
    // it is a copy.
    void (*interleave)(const bf16_t* const* rows, index_t count, index_t block_width, index_t columns, bf16_t* block);
    // y[i][o] = dot(matrix row o, x[i]) for begin <= o < end and i < n; x in blocks.  begin is a multiple of 32.
    // Each dot product has one order of sums, whatever n, begin and end are.
    void (*rows)(const Matrix& matrix, index_t begin, index_t end, const bf16_t* const* blocks, float* const* y,
                 index_t n);
};

// Products of FP4 with inputs rounded to int8 in groups of 32 (formats.round_int8_groups), summed exactly within a group.
struct Int8Products {
    static bool covers(const Matrix& m) { return m.format == Format::Fp4; }
    // Bytes of a prepared row of x.
    index_t (*packed_bytes)(index_t columns);
    void (*pack)(const float* x, index_t columns, std::uint8_t* packed);
    // y[i][o] = dot(matrix row o, x[i]) for begin <= o < end and i < n; each in one order of sums.
    void (*rows)(const Matrix& matrix, index_t begin, index_t end, const std::uint8_t* const* x, float* const* y,
                 index_t n);
};

// Products of FP4 with inputs rounded to 16 bits in groups of 512 (formats.round_int16_groups), summed exactly within a
// group.
struct Int16Products {
    static bool covers(const Matrix& m) { return m.format == Format::Fp4; }
    static constexpr index_t few = 3;  // rows of x at most that meet the matrix as they are prepared, each its own block
    static constexpr index_t most = 16;
    static index_t block_height(index_t n) { return n > few ? most : 1; }
    static index_t block_width(index_t n, index_t) { return block_height(n); }
    // Bytes of a prepared row of x.
    index_t (*packed_bytes)(index_t columns);
    void (*pack)(const float* x, index_t columns, std::uint8_t* packed);
    // rows [count] -> one block of 16 in the kernel's own order, zeros beyond count.
    void (*interleave)(const std::uint8_t* const* rows, index_t count, index_t width, index_t columns,
                       std::uint8_t* block);
    // y[i][o] = dot(matrix row o, x[i]) for begin <= o < end and i < n; x in blocks; each in one order of sums.
    void (*rows)(const Matrix& matrix, index_t begin, index_t end, const std::uint8_t* const* blocks, float* const* y,
                 index_t n);
};

// One table per instruction set.
struct Kernels {
    const char* name;
    // x [columns] -> packed [packed_width(columns)], in the order in which `rows` meets the weights.
    void (*pack)(Format format, const float* x, index_t columns, float* packed);
    // y[i][o] = dot(matrix row o, x[i]) for begin <= o < end and i < n; x packed.  Each dot product is summed
    // in one order that depends on neither n, begin nor end, so its bits don't either.
    void (*rows)(const Matrix& matrix, index_t begin, index_t end, const float* const* x, float* const* y,
                 index_t n);
    // x [count] -> the nearest bfloat16, and -> FP8 in groups of 128 (formats.round_fp8).
    void (*to_bf16)(const float* x, index_t count, bf16_t* out);
    void (*round_fp8)(const float* x, index_t count, float* out);
    // gate = weight * silu(min(gate, limit)) * clamp(up, -limit, limit)
    void (*swiglu)(float* gate, const float* up, index_t count, float limit, float weight);
    // Null where bfloat16 products are no faster than `rows` with rounded x.
    const Bf16Products* bf16;
    // Null where there are no dot products of bytes.
    const Int8Products* int8;
    // Null where there are no matrix units for bytes.
    const Int16Products* int16;
};

extern const Kernels kScalarKernels;
#ifdef FOURFOLD_X86
extern const Kernels kAvx2Kernels;
extern const Int8Products kAvx2Int8;
extern const Kernels kAvx512Kernels;
#ifdef FOURFOLD_AVX512VNNI
extern const Kernels kAvx512VnniKernels;  // those of AVX-512, and int8 products
extern const Int8Products kAvx512Int8;
#endif
#ifdef FOURFOLD_AVX512BF16
extern const Kernels kAvx512Bf16Kernels;  // those of AVX-512 VNNI, and bfloat16 products
extern const Bf16Products kAvx512Bf16Products;
#endif
#ifdef FOURFOLD_AMX
extern const Kernels kAmxKernels;  // the same with matrix units
extern const Bf16Products kAmxProducts;
extern const Int16Products kAmxInt16;
#endif
#endif
#ifdef FOURFOLD_ARM
extern const Kernels kNeonKernels;
#ifdef FOURFOLD_NEONDOT
extern const Kernels kNeonDotKernels;  // those of NEON, and int8 products
extern const Int8Products kNeonInt8;
#endif
#endif

}  // namespace fourfold
