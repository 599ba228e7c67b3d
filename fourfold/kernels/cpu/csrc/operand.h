// The input of matrix products, prepared: rounded, and in the order in which a kernel meets the weights.
#pragma once

#include <vector>

#include "isa.h"
#include "scratch.h"

namespace fourfold {

// How the input of a product is rounded; numbers as in fourfold.kernels.formats.Rounding.
enum class Rounding { None = 0, Bf16 = 1, Fp8 = 2, Int8 = 3, Int8Groups = 4, Int16Groups = 5 };

// Which of a table's products.
enum class Products { F32, Bf16, Int8, Int16 };

// Who multiplies this matrix?
inline Products products_of(const Matrix& m, Rounding rounding) {
    if (rounding == Rounding::Int8Groups && kernels().int8 && Int8Products::covers(m)) return Products::Int8;
    if (rounding == Rounding::Int16Groups && kernels().int16 && Int16Products::covers(m)) return Products::Int16;
    const bool in_bf16 = rounding == Rounding::Bf16 || rounding == Rounding::Fp8;
    return in_bf16 && kernels().bf16 && Bf16Products::covers(m) ? Products::Bf16 : Products::F32;
}

// How inputs of FP4 are rounded where bfloat16 would do: as the fastest products want it.
inline Rounding fp4_rounding() {
    if (kernels().int16) return Rounding::Int16Groups;
    return kernels().int8 && !kernels().bf16 ? Rounding::Int8Groups : Rounding::Bf16;
}

// Rows of activations, float32 or bfloat16, row i at `stride` elements after row i - 1.
struct Activations {
    const float* f32;
    const bf16_t* bf16;  // one of the two is null
    index_t count, columns, stride;

    // `n` rows from `begin` on.
    Activations from(index_t begin, index_t n) const {
        return {f32 ? f32 + begin * stride : nullptr, bf16 ? bf16 + begin * stride : nullptr, n, columns, stride};
    }
};

// Rounded rows, each ready to meet any matrix with as many columns that the same kernel multiplies.
class Operand {
public:
    // `format`: of the matrices that will meet them.
    void prepare(const Activations& x, Rounding rounding, Format format, Products products);
    Products products() const { return products_; }

    // The products of the listed rows (in this order) with a matrix, once `gather` has been called on the list.
    struct Selection {
        const index_t* rows;  // null: all rows in order
        index_t count;
        index_t first_block;  // where `gather` put it
    };
    // Lays out the inputs of all selections; they stay valid until the next call.
    void gather(std::vector<Selection>& selections);
    // y[i][o] for begin <= o < end and the selection's rows i.  begin is a multiple of 32.
    void multiply(const Matrix& matrix, index_t begin, index_t end, const Selection& selection, float* const* y) const;

private:
    void prepare_bf16(const Activations& x, Rounding rounding, Format format);
    void prepare_f32(const Activations& x, Rounding rounding, Format format);
    void prepare_bytes(const Activations& x, index_t (*packed_bytes)(index_t),
                       void (*pack)(const float*, index_t, std::uint8_t*));

    Products products_ = Products::F32;
    index_t columns_ = 0, f32_stride_ = 0, bf16_stride_ = 0, byte_stride_ = 0;
    const float* f32_rows_ = nullptr;
    const bf16_t* bf16_rows_ = nullptr;
    const std::uint8_t* byte_rows_ = nullptr;
    Scratch rows_memory_, block_memory_;
    std::vector<const float*> f32_pointers_;
    std::vector<const std::uint8_t*> byte_pointers_;
    std::vector<const bf16_t*> blocks_;
};

}  // namespace fourfold
