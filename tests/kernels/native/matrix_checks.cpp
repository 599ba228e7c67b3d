// Products with stored matrices, against the definition of the formats.
#include <algorithm>

#include "ops.h"
#include "stored.h"
#include "thread_pool.h"

namespace fourfold {
namespace {

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
    const std::vector<bf16_t> half = narrowed(x);
    const std::vector<float> alone_half = product(s.matrix, half.data(), n, 0, rows);
    bool alike = true;
    for (int threads : {1, 2, 5}) {
        ThreadPool::instance().set_threads(threads);
        std::vector<float> y(n * rows);
        linear(s.matrix, {x.data(), nullptr, n, columns, columns}, Rounding::None, y.data());
        alike = alike && same_bits(y.data(), alone.data(), n * rows);
        linear(s.matrix, {nullptr, half.data(), n, columns, columns}, Rounding::Bf16, y.data());
        alike = alike && same_bits(y.data(), alone_half.data(), n * rows);
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
