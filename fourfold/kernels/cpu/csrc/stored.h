// Arguments of functions of the Python module that are stored matrices, and what meets them.
#pragma once

#include "argument.h"
#include "ops.h"

namespace fourfold {

// weight [count, rows, columns] or [count * rows, columns] with its scale (None if it is not packed), `count`
// matrices in all.
inline Matrix matrix(const Argument& weight, nb::handle scale_object, index_t count) {
    using dlpack::Code;
    Matrix m{};
    weight.check(weight.ndim >= 2, "has fewer than two dimensions");
    const bool fp4 = weight.is(Code::Int, 8), fp8 = weight.is(Code::E4M3, 8);
    weight.check(fp4 || fp8 || weight.is(Code::Bfloat, 16) || weight.is(Code::Float, 32),
                 "is neither FP4 (int8), FP8 (float8_e4m3fn), bfloat16 nor float32");
    m.format = fp4 ? Format::Fp4 : fp8 ? Format::Fp8 : weight.bits == 16 ? Format::Bf16 : Format::F32;
    m.columns = weight.last() * (fp4 ? 2 : 1);
    weight.check(!fp4 || m.columns % kFp4Group == 0, "has columns that are no multiple of 32");
    const index_t rows = m.columns ? weight.size() / weight.last() : 0;
    weight.check(count > 0 && rows % count == 0, "does not divide into its groups");
    m.rows = rows / count;
    m.weight = weight.bytes();
    weight.check(scale_object.is_none() != m.scaled(), m.scaled() ? "has no scale" : "has a scale that it cannot use");
    if (!m.scaled()) return m;
    const Argument scale(scale_object, "scale");
    weight.check(fp4 || count == 1 || weight.ndim == 3 || m.rows % kFp8Block == 0,
                 "has groups that share rows of scales");
    m.float_scale = scale.is(Code::Float, 32);
    scale.check(scale.is(Code::E8M0, 8) || (m.float_scale && !fp4), "has the wrong dtype");
    scale.check(scale.size() == count * m.scale_rows() * m.scales_per_row(), "does not fit its weight");
    m.scale = scale.bytes();
    return m;
}

// x [..., columns], float32 or bfloat16.
inline Activations rows_of(const Argument& x) {
    const bool narrow = x.type() == Type::Bf16;
    const index_t columns = x.last();
    return {narrow ? nullptr : reinterpret_cast<const float*>(x.bytes()),
            narrow ? reinterpret_cast<const bf16_t*>(x.bytes()) : nullptr, columns ? x.size() / columns : 0, columns,
            columns};
}

inline Rounding rounding_of(int number) {
    if (number < 0 || number > 5) throw nb::value_error("rounding is not 0, 1, 2, 3, 4 or 5");
    return Rounding(number);
}

// (weight, scale) as Python hands it.
struct StoredPair {
    nb::handle weight, scale;

    explicit StoredPair(nb::handle pair) {
        if (!PyTuple_CheckExact(pair.ptr()) || PyTuple_GET_SIZE(pair.ptr()) != 2)
            throw nb::type_error("a stored weight is not (weight, scale)");
        weight = PyTuple_GET_ITEM(pair.ptr(), 0);
        scale = PyTuple_GET_ITEM(pair.ptr(), 1);
    }
    // Whether the products read it as it lies; what they do not read is the reference's.
    bool readable() const {
        using dlpack::Code;
        const Glance w(weight);
        if (!w.gapless()) return false;
        if (scale.is_none()) return w.floats();
        return w.is(Code::E4M3, 8) || (w.is(Code::Int, 8) && Glance(scale).is(Code::E8M0, 8));
    }
};

inline Matrix matrix(const StoredPair& stored, const char* name, index_t count = 1) {
    return matrix(Argument(stored.weight, name), stored.scale, count);
}

// w1, w3 [S, I, D] and w2 [S, D, I] of experts.
inline Stacks stacks_of(const Argument& w1, nb::handle s1, const Argument& w3, nb::handle s3, const Argument& w2,
                        nb::handle s2) {
    w1.check(w1.ndim == 3, "is not [S, I, D]");
    const index_t count = w1.shape[0];
    const Stacks stacks{matrix(w1, s1, count), matrix(w3, s3, count), matrix(w2, s2, count), nullptr};
    w1.check(stacks.w3.format == stacks.w1.format && stacks.w3.rows == stacks.w1.rows &&
                 stacks.w3.columns == stacks.w1.columns && stacks.w2.rows == stacks.w1.columns &&
                 stacks.w2.columns == stacks.w1.rows,
             "does not fit w3 and w2");
    return stacks;
}

// Numbers of experts, each below `experts`.
inline const index_t* experts_of(const Argument& indices, index_t experts) {
    const index_t* chosen = indices.integers();
    for (index_t i = 0; i < indices.size(); ++i)
        indices.check(chosen[i] >= 0 && chosen[i] < experts, "names an expert that does not exist");
    return chosen;
}

}  // namespace fourfold
