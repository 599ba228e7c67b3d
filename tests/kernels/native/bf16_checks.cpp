// Products of bf16 inputs, and what stands between the products, against the scalar table.
#include <algorithm>
#include <limits>

#include "stored.h"

namespace fourfold {
namespace {

// Greatest difference of y [n, rows] in units of the row's greatest result; infinite where only one of two is NaN.
double difference(const std::vector<float>& got, const std::vector<float>& want, index_t rows) {
    double worst = 0;
    for (index_t o = 0; o < rows; ++o) {
        double size = 1e-300, most = 0;
        for (std::size_t i = o; i < want.size(); i += rows) {
            if (std::isnan(got[i]) != std::isnan(want[i])) return std::numeric_limits<double>::infinity();
            if (std::isnan(want[i])) continue;
            size = std::max(size, std::fabs(double(want[i])));
            most = std::max(most, std::fabs(double(got[i]) - want[i]));
        }
        worst = std::max(worst, most / size);
    }
    return worst;
}

// Inputs in bf16.  Matrix units have tiles of 16 rows of x, work on two at once, and turn to another loop beyond.
void check_bf16(const Stored& s, const char* what) {
    constexpr index_t most = 70;
    const Matrix& m = s.matrix;
    std::vector<float> wide = normal(most * m.columns);
    for (float& v : wide) v = (v + std::copysign(1.f, v)) / 8;  // matrix units take subnormal results for zeros
    const std::vector<bf16_t> x = narrowed(wide);
    for (std::size_t i = 0; i < x.size(); ++i) {
        const std::uint32_t bits = std::uint32_t{x[i]} << 16;
        std::memcpy(&wide[i], &bits, 4);
    }
    const std::vector<float> y = product(m, x.data(), most, 0, m.rows);
    const double error = difference(y, product(m, wide.data(), most, 0, m.rows, kScalarKernels), m.rows);
    bool alike = true;
    for (index_t i = 0; i < most; ++i)
        alike = alike && same_bits(product(m, &x[i * m.columns], 1, 0, m.rows).data(), &y[i * m.rows], m.rows);
    for (index_t n : {2, 15, 16, 17, 32, 33}) {
        const std::vector<float> last = product(m, &x[(most - n) * m.columns], n, 0, m.rows);
        alike = alike && same_bits(last.data(), &y[(most - n) * m.rows], n * m.rows);
    }
    for (index_t begin = 32; begin < m.rows; begin += 32)
        for (index_t end : {begin + 1, m.rows}) {
            const std::vector<float> part = product(m, x.data(), 1, begin, end);
            alike = alike && same_bits(part.data(), &y[begin], end - begin);
        }
    report(error <= 2e-6, "%s %3td x %4td of bf16 inputs%s: differs from scalar by %.1e, at most 2e-06",
           name(m.format), m.rows, m.columns, what, error);
    report(alike, "%s %3td x %4td of bf16 inputs%s: same bits in every batch and range of rows", name(m.format),
           m.rows, m.columns, what);
}

// Numbers that are no bf16 once they have their scale, and those that just are, beside ordinary ones.
void check_bf16_limits(Format format) {
    for (int exponent : {0, 11, 12, 240, 241, 255}) {
        Stored s(format, 131, format == Format::Fp4 ? 544 : 288);
        const index_t scales = s.matrix.scales_per_row();
        s.scale[scales - 1] = std::uint8_t(exponent);
        std::fill(s.scale.end() - scales, s.scale.end(), std::uint8_t(exponent));
        if (format == Format::Fp8) s.weight[40 * 288 + 7] = 0xff;
        char what[32];
        std::snprintf(what, sizeof what, ", scale code %d", exponent);
        check_bf16(s, what);
    }
}

// What stands between the products: the scalar table's bits.
void check_rounding() {
    for (index_t n : {1, 7, 128, 1003}) {
        std::vector<float> x = normal(n), got(n), want(n);
        const std::vector<float> up = normal(n);
        for (index_t i = 0; i < n; ++i) x[i] = std::ldexp(x[i], whole(-140, 120));
        std::vector<bf16_t> half(n);
        kernels().to_bf16(x.data(), n, half.data());
        report(half == narrowed(x), "to_bf16 %td: same bits as scalar", n);
        x = normal(n);
        for (index_t i = 0; i < n; ++i) x[i] = std::ldexp(x[i], whole(-12, 3) - int(i / 128 * 10));
        kernels().round_fp8(x.data(), n, got.data());
        kScalarKernels.round_fp8(x.data(), n, want.data());
        report(same_bits(got.data(), want.data(), n), "round_fp8 %td: same bits as scalar", n);
        for (index_t i = 0; i < n; ++i) got[i] = want[i] = up[n - 1 - i] * float(1 << i % 8);
        kernels().swiglu(got.data(), up.data(), n, 1.5f, 0.7f);
        kScalarKernels.swiglu(want.data(), up.data(), n, 1.5f, 0.7f);
        report(same_bits(got.data(), want.data(), n), "swiglu %td: same bits as scalar", n);
    }
}

}  // namespace

void check_bf16_inputs() {
    for (index_t rows : {1, 67}) {
        for (index_t columns : {32, 160, 1056}) check_bf16(Stored(Format::Fp4, rows, columns), "");
        for (Format format : {Format::Fp8, Format::Bf16, Format::F32})
            for (index_t columns : {1, 31, 129, 300, 1057}) check_bf16(Stored(format, rows, columns), "");
    }
    for (Format format : {Format::Fp4, Format::Fp8, Format::Bf16}) check_bf16(Stored(format, 5, 8224), "");
    for (Format format : {Format::Fp4, Format::Fp8}) check_bf16_limits(format);
    check_rounding();
}

}  // namespace fourfold
