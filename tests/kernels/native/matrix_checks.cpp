// Products with stored matrices, against the definition of the formats.
#include <algorithm>
#include <string>

#include "check.h"
#include "ops.h"
#include "thread_pool.h"

namespace fourfold {
namespace {

const char* name(Format format) {
    constexpr const char* names[] = {"fp4", "fp8", "bf16", "f32"};
    return names[int(format)];
}

// ---- The formats by their definition, in double.

double e2m1(int code) {
    const double magnitude = code >> 1 & 3 ? std::ldexp(2 + (code & 1), (code >> 1 & 3) - 2) : (code & 1) * 0.5;
    return code & 8 ? -magnitude : magnitude;
}

double e4m3(int code) {
    if ((code & 127) == 127) return std::nan("");
    const int exponent = code >> 3 & 15;
    const double magnitude = exponent ? std::ldexp(8 + (code & 7), exponent - 10) : std::ldexp(code & 7, -9);
    return code & 128 ? -magnitude : magnitude;
}

double e8m0(int code) { return code == 255 ? std::nan("") : std::ldexp(1., code - 127); }

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
        std::vector<bf16_t> half(values.size());
        kScalarKernels.to_bf16(values.data(), index_t(values.size()), half.data());
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

// y [n, end - begin] through the table alone: no threads, any range of rows.
std::vector<float> product(const Matrix& m, const float* x, index_t n, index_t begin, index_t end) {
    const index_t stride = packed_stride(m.columns);
    std::vector<float> packed(n * stride), y(n * m.rows), out;
    std::vector<const float*> in;
    std::vector<float*> to;
    for (index_t i = 0; i < n; ++i) {
        kernels().pack(m.format, x + i * m.columns, m.columns, &packed[i * stride]);
        in.push_back(&packed[i * stride]);
        to.push_back(&y[i * m.rows]);
    }
    kernels().rows(m, begin, end, in.data(), to.data(), n);
    for (index_t i = 0; i < n; ++i) out.insert(out.end(), to[i] + begin, to[i] + end);
    return out;
}

// ---- Checks.

void check_product(Format format, index_t rows, index_t columns, bool float_scale) {
    constexpr index_t most = 9;
    const Stored s(format, rows, columns, float_scale);
    const std::vector<float> x = normal(most * columns);
    const std::vector<float> y = product(s.matrix, x.data(), most, 0, rows);
    double worst = 0;
    for (index_t i = 0; i < most; ++i)
        for (index_t o = 0; o < rows; ++o) {
            double sum = 0, size = 0;
            for (index_t k = 0; k < columns; ++k) {
                const double term = s.at(o, k) * x[i * columns + k];
                sum += term, size += std::fabs(term);
            }
            const double error = std::fabs(y[i * rows + o] - sum) / (size + 1e-300);
            worst = std::isnan(worst) || error <= worst ? worst : error;
        }
    bool alike = true;
    for (index_t n = 1; n < most; ++n)
        alike = alike && same_bits(product(s.matrix, x.data(), n, 0, rows).data(), y.data(), n * rows);
    for (index_t i = 0; i < most; ++i)
        for (index_t begin = 0; begin < std::min<index_t>(rows, 3); ++begin) {
            const std::vector<float> part = product(s.matrix, &x[i * columns], 1, begin, rows);
            alike = alike && same_bits(part.data(), &y[i * rows + begin], rows - begin);
        }
    report(worst <= 1e-6, "%s %4td x %4td%s: error %.1e of the terms, at most 1e-06", name(format), rows, columns,
           float_scale ? ", float32 scales" : "", worst);
    report(alike, "%s %4td x %4td%s: same bits in every batch and range of rows", name(format), rows, columns,
           float_scale ? ", float32 scales" : "");
}

// Each code under each scale, met by a one: the very float that the definition gives, NaN where it is NaN.
void check_codes(Format format) {
    const index_t columns = format == Format::Fp4 ? 512 : 256;
    std::vector<float> one(columns * columns);
    for (index_t k = 0; k < columns; ++k) one[k * columns + k] = 1;
    for (int exponent : {0, 1, 2, 100, 127, 200, 253, 254}) {
        Stored s(format, 1, columns);
        for (std::size_t i = 0; i < s.weight.size(); ++i) s.weight[i] = std::uint8_t(i);
        for (auto& b : s.weight)
            if (format == Format::Fp8 && (b & 127) == 127) b = 0;
        for (auto& b : s.scale) b = std::uint8_t(exponent);
        const std::vector<float> y = product(s.matrix, one.data(), columns, 0, 1);
        bool exact = true;
        for (index_t k = 0; k < columns; ++k) exact = exact && y[k] == float(s.at(0, k));
        report(exact, "%s, each code times 2^%d is exact", name(format), exponent - 127);
    }
}

void check_nan() {
    bool exact = true;
    for (int code : {0x7f, 0xff})
        for (index_t columns : {33, 256, 300})
            for (index_t k = 0; k < columns; ++k) {
                Stored s(Format::Fp8, 5, columns);
                s.weight[k % 5 * columns + k] = std::uint8_t(code);
                const std::vector<float> x = normal(columns), y = product(s.matrix, x.data(), 1, 0, 5);
                for (index_t o = 0; o < 5; ++o) exact = exact && std::isnan(y[o]) == (o == k % 5);
            }
    report(exact, "fp8, a NaN in any column is NaN in its row and no other");
    for (Format format : {Format::Fp4, Format::Fp8}) {
        exact = true;
        for (index_t block = 0; block < 3; ++block) {
            Stored s(format, 2, format == Format::Fp4 ? 96 : 384);
            s.scale[block] = 255;  // of row 0 in fp4, of both in fp8
            const std::vector<float> x = normal(3 * s.matrix.columns), y = product(s.matrix, x.data(), 3, 0, 2);
            for (index_t i = 0; i < 6; ++i)
                exact = exact && std::isnan(y[i]) == (format == Format::Fp8 || i % 2 == 0);
        }
        report(exact, "%s, a NaN scale is NaN in its rows and no other", name(format));
    }
}

// Large enough to be shared between threads; an odd number of rows leaves short pieces.
void check_threads(Format format) {
    const index_t rows = 1027, columns = 800, n = 3;
    const Stored s(format, rows, columns);
    const std::vector<float> x = normal(n * columns), alone = product(s.matrix, x.data(), n, 0, rows);
    bool alike = true;
    for (int threads : {1, 2, 5}) {
        ThreadPool::instance().set_threads(threads);
        std::vector<float> y(n * rows);
        linear(s.matrix, {x.data(), nullptr, n, columns, columns}, Rounding::None, y.data());
        alike = alike && same_bits(y.data(), alone.data(), n * rows);
    }
    report(alike, "%s %td x %td: same bits with 1, 2 and 5 threads", name(format), rows, columns);
}

}  // namespace

void check_matrices() {
    for (Format format : {Format::Fp4, Format::Fp8}) {
        for (index_t rows : {1, 5, 130})
            for (index_t columns : {32, 96, 160, 320, 1056}) check_product(format, rows, columns, false);
        check_codes(format);
        check_threads(format);
    }
    for (index_t columns : {1, 31, 127, 129, 255, 300}) {
        check_product(Format::Fp8, 131, columns, false);
        check_product(Format::Fp8, 131, columns, true);
    }
    for (Format format : {Format::Bf16, Format::F32}) {
        for (index_t columns : {1, 3, 31, 127, 160, 300}) check_product(format, 5, columns, false);
        check_threads(format);
    }
    check_nan();
}

}  // namespace fourfold
