// Products of inputs rounded to int8 or to 16 bits, against the definition; tables without such products round and use float32.
#include <algorithm>

#include "stored.h"

namespace fourfold {
namespace {

const char* name(Rounding rounding) { return rounding == Rounding::Int8Groups ? "int8" : "int16"; }

// x [columns] on the grid of this rounding, in double.
std::vector<double> on_grid(const float* x, index_t columns, Rounding rounding) {
    const index_t group = rounding == Rounding::Int8Groups ? 32 : 512;
    std::vector<double> y(columns);
    for (index_t k = 0; k < columns; k += group) {
        const index_t end = std::min(k + group, columns);
        float most = 1e-30f;
        for (index_t i = k; i < end; ++i) most = std::max(most, std::fabs(x[i]));
        float inverse = 127.f / most, scale = most / 127.f;
        if (rounding == Rounding::Int16Groups) {
            scale = std::exp2(std::ceil(std::log2(most / 32639.f)));
            inverse = 1.f / scale;
        }
        for (index_t i = k; i < end; ++i) y[i] = double(std::nearbyint(x[i] * inverse)) * scale;
    }
    return y;
}

std::vector<float> rounded_product(const Matrix& m, const float* x, index_t n, index_t begin, index_t end,
                                   Rounding rounding) {
    return product(m, Activations{x, nullptr, n, m.columns, m.columns}, rounding, begin, end);
}

// FP4 with exponents of scales that differ by less than `spread`, those of a few rows by up to 7; some groups are zeros
// of either sign under any scale.
void spread_scales(Stored& s, int spread) {
    for (std::size_t i = 0; i < s.scale.size(); ++i) {
        if (i < s.scale.size() * 9 / 10) s.scale[i] = std::uint8_t(124 + whole(0, spread - 1));
        if (whole(0, 15)) continue;
        s.scale[i] = std::uint8_t(whole(0, 200));
        for (std::size_t b = 16 * i; b < 16 * (i + 1); ++b) s.weight[b] &= 0x88;
    }
}

void check_product(Format format, index_t rows, index_t columns, Rounding rounding, int spread) {
    constexpr index_t most = 36;
    Stored s(format, rows, columns);
    if (format == Format::Fp4) spread_scales(s, spread);
    std::vector<float> x = normal(most * columns);
    for (index_t i = 0; i < most * columns; ++i) x[i] = std::ldexp(x[i], int(i / 32 % 40) - 20);
    std::fill_n(x.begin(), std::min<index_t>(columns, 32), 0.f);
    const std::vector<float> y = rounded_product(s.matrix, x.data(), most, 0, rows, rounding);
    double worst = 0;
    for (index_t i = 0; i < most; ++i) {
        const std::vector<double> grid = on_grid(&x[i * columns], columns, rounding);
        for (index_t o = 0; o < rows; ++o) {
            double sum = 0, size = 1e-300;
            for (index_t k = 0; k < columns; ++k) {
                const double term = s.at(o, k) * grid[k];
                sum += term, size += std::fabs(term);
            }
            const double error = std::fabs(y[i * rows + o] - sum) / size;
            worst = std::isnan(worst) || error <= worst ? worst : error;
        }
    }
    bool alike = true;
    for (index_t n : {1, 2, 3, 4, 5, 10, 16, 17, 33}) {
        const std::vector<float> last = rounded_product(s.matrix, &x[(most - n) * columns], n, 0, rows, rounding);
        alike = alike && same_bits(last.data(), &y[(most - n) * rows], n * rows);
    }
    for (index_t i = 0; i < most; ++i)
        for (index_t begin = 0; begin < rows; begin += 32) {
            const std::vector<float> part = rounded_product(s.matrix, &x[i * columns], 1, begin, rows, rounding);
            alike = alike && same_bits(part.data(), &y[i * rows + begin], rows - begin);
        }
    report(worst <= 1e-6, "%s %3td x %4td of %s inputs, scales within %d: error %.1e of the terms, at most 1e-06",
           name(format), rows, columns, name(rounding), spread, worst);
    report(alike, "%s %3td x %4td of %s inputs, scales within %d: same bits in every batch and range of rows",
           name(format), rows, columns, name(rounding), spread);
}

// NaN and infinity in x reach every row, a NaN scale its own; the largest products stay whole numbers.
void check_limits(Rounding rounding) {
    const index_t rows = 5, columns = 544;
    Stored s(Format::Fp4, rows, columns);
    bool exact = true;
    for (const float odd : {std::nanf(""), HUGE_VALF}) {
        std::vector<float> x = normal(2 * columns);
        x[columns + 77] = odd;
        const std::vector<float> y = rounded_product(s.matrix, x.data(), 2, 0, rows, rounding);
        for (index_t o = 0; o < rows; ++o) exact = exact && std::isfinite(y[o]) && !std::isfinite(y[rows + o]);
    }
    for (int code : {0, 200, 255}) {
        s.scale[3 * columns / 32 - 1] = std::uint8_t(code);
        const std::vector<float> x = normal(columns), y = rounded_product(s.matrix, x.data(), 1, 0, rows, rounding);
        for (index_t o = 0; o < rows; ++o) exact = exact && std::isnan(y[o]) == (code == 255 && o == 2);
    }
    report(exact, "%s inputs: NaN and infinity are seen where they belong", name(rounding));
    std::fill(s.scale.begin(), s.scale.end(), std::uint8_t(127));
    exact = true;
    for (int byte : {0x77, 0xff, 0xf7}) {  // 6 6, -6 -6, 6 -6
        std::fill(s.weight.begin(), s.weight.end(), std::uint8_t(byte));
        std::vector<float> x(columns, 127.f);
        const float low = byte & 8 ? -6.f : 6.f, high = byte & 128 ? -6.f : 6.f, want = 127 * columns / 2 * (low + high);
        for (const float y : rounded_product(s.matrix, x.data(), 1, 0, rows, rounding)) exact = exact && y == want;
    }
    report(exact, "%s inputs: the largest products are exact", name(rounding));
    exact = true;
    std::fill(s.weight.begin(), s.weight.end(), std::uint8_t(0x35));
    for (int code : {0, 1, 2, 3, 4, 5, 6}) {  // 2^-127 is a subnormal float
        for (std::size_t i = 0; i < s.scale.size(); ++i) s.scale[i] = std::uint8_t(i % 7 ? code : 0);
        const std::vector<float> x(columns, std::ldexp(1.f, 40));
        const std::vector<float> y = rounded_product(s.matrix, x.data(), 1, 0, rows, rounding);
        for (index_t o = 0; o < rows; ++o) {
            double want = 0, size = 0;
            for (index_t k = 0; k < columns; ++k) want += s.at(o, k) * x[k], size += std::fabs(s.at(o, k) * x[k]);
            exact = exact && std::fabs(y[o] - want) <= 1e-6 * size;
        }
    }
    report(exact, "%s inputs: the least scales count", name(rounding));
}

}  // namespace

void check_integer_inputs() {
    for (Rounding rounding : {Rounding::Int8Groups, Rounding::Int16Groups}) {
        for (index_t rows : {1, 67})
            for (index_t columns : {32, 160, 512, 1056, 2144})
                for (int spread : {4, 8, 60}) check_product(Format::Fp4, rows, columns, rounding, spread);
        check_product(Format::Fp8, 5, 300, rounding, 8);
        check_product(Format::Bf16, 5, 33, rounding, 8);
        check_limits(rounding);
    }
}

}  // namespace fourfold
