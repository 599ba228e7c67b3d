// A stored matrix with its memory, its values by the definition of its format, and its products.
#pragma once

#include "check.h"
#include "operand.h"

namespace fourfold {

inline const char* name(Format format) {
    constexpr const char* names[] = {"fp4", "fp8", "bf16", "f32"};
    return names[int(format)];
}

// ---- The formats by their definition, in double.

inline double e2m1(int code) {
    const double magnitude = code >> 1 & 3 ? std::ldexp(2 + (code & 1), (code >> 1 & 3) - 2) : (code & 1) * 0.5;
    return code & 8 ? -magnitude : magnitude;
}

inline double e4m3(int code) {
    if ((code & 127) == 127) return std::nan("");
    const int exponent = code >> 3 & 15;
    const double magnitude = exponent ? std::ldexp(8 + (code & 7), exponent - 10) : std::ldexp(code & 7, -9);
    return code & 128 ? -magnitude : magnitude;
}

inline double e8m0(int code) { return code == 255 ? std::nan("") : std::ldexp(1., code - 127); }

inline std::vector<bf16_t> narrowed(const std::vector<float>& x) {
    std::vector<bf16_t> half(x.size());
    kScalarKernels.to_bf16(x.data(), index_t(x.size()), half.data());
    return half;
}

// A matrix with its memory; begins with random codes that are no NaN and scales near 1.
struct Stored {
    Matrix matrix{};
    std::vector<std::uint8_t> weight, scale;

    Stored(Format format, index_t rows, index_t columns, bool float_scale = false) {
        matrix.format = format, matrix.rows = rows, matrix.columns = columns, matrix.float_scale = float_scale;
        weight.resize(rows * matrix.row_bytes());
        scale.resize(matrix.scale_bytes());
        for (auto& b : weight) do b = std::uint8_t(whole(0, 255)); while (format == Format::Fp8 && (b & 127) == 127);
        if (!matrix.scaled()) plain(normal(rows * columns));
        for (auto& b : scale) b = std::uint8_t(whole(120, 127));
        if (float_scale)
            for (std::size_t i = 0; i < scale.size(); i += 4) {
                const float v = 0.5f + float(whole(0, 255)) / 255.f;
                std::memcpy(&scale[i], &v, 4);
            }
        matrix.weight = weight.data(), matrix.scale = scale.data();
    }

    void plain(const std::vector<float>& values) {
        const std::vector<bf16_t> half = narrowed(values);
        const void* from = matrix.format == Format::F32 ? static_cast<const void*>(values.data()) : half.data();
        std::memcpy(weight.data(), from, weight.size());
    }

    double at(index_t row, index_t column) const {
        const index_t stride = matrix.scales_per_row();
        if (!matrix.scaled()) {
            const std::uint8_t* p = &weight[row * matrix.row_bytes()];
            std::uint32_t bits = 0;
            if (matrix.format == Format::F32) std::memcpy(&bits, p + 4 * column, 4);
            else std::memcpy(reinterpret_cast<char*>(&bits) + 2, p + 2 * column, 2);  // little endian
            float value;
            std::memcpy(&value, &bits, 4);
            return value;
        }
        if (matrix.format == Format::Fp4) {
            const int pair = weight[row * matrix.row_bytes() + column / 2];
            return e2m1(column % 2 ? pair >> 4 : pair & 15) * e8m0(scale[row * stride + column / kFp4Group]);
        }
        const index_t block = row / kFp8Block * stride + column / kFp8Block;
        float unit;
        if (matrix.float_scale) std::memcpy(&unit, &scale[4 * block], 4);
        return e4m3(weight[row * matrix.columns + column]) * (matrix.float_scale ? unit : e8m0(scale[block]));
    }
};

// y [n, end - begin] of what `multiply(y by row of x)` writes there.
template <class Multiply>
std::vector<float> results(index_t rows, index_t n, index_t begin, index_t end, Multiply&& multiply) {
    std::vector<float> y(n * rows), out;
    std::vector<float*> to;
    for (index_t i = 0; i < n; ++i) to.push_back(&y[i * rows]);
    multiply(to.data());
    for (index_t i = 0; i < n; ++i) out.insert(out.end(), to[i] + begin, to[i] + end);
    return out;
}

// Through the table alone: no threads, any range of rows.
inline std::vector<float> product(const Matrix& m, const float* x, index_t n, index_t begin, index_t end,
                                  const Kernels& table = kernels()) {
    const index_t stride = packed_stride(m.columns);
    std::vector<float> packed(n * stride);
    std::vector<const float*> in;
    for (index_t i = 0; i < n; ++i) {
        table.pack(m.format, x + i * m.columns, m.columns, &packed[i * stride]);
        in.push_back(&packed[i * stride]);
    }
    return results(m.rows, n, begin, end, [&](float* const* y) { table.rows(m, begin, end, in.data(), y, n); });
}

// The same of rounded inputs, for which a table may have its own way; begin a multiple of 32.
inline std::vector<float> product(const Matrix& m, const Activations& x, Rounding rounding, index_t begin, index_t end) {
    Operand operand;
    std::vector<Operand::Selection> all{{nullptr, x.count, 0}};
    operand.prepare(x, rounding, m.format, products_of(m, rounding));
    operand.gather(all);
    return results(m.rows, x.count, begin, end, [&](float* const* y) { operand.multiply(m, begin, end, all[0], y); });
}

inline std::vector<float> product(const Matrix& m, const bf16_t* x, index_t n, index_t begin, index_t end) {
    return product(m, Activations{nullptr, x, n, m.columns, m.columns}, Rounding::Bf16, begin, end);
}

}  // namespace fourfold
