// Stored values become bfloat16, for kernels that multiply pairs of bfloat16; AVX-512 BW and VL.
// Included by files with their own flags, hence the unnamed namespace.
//
// Every e2m1 or e4m3 value times a power of two is a bfloat16, so nothing is lost; rows with a NaN or with scales
// beyond bfloat16's range are "odd" and go through `odd_product`.
//
// The order of columns is free as long as x has the same.  Within each unit of 128 it is the one that is cheapest to
// decode: step s of FP4 takes columns 4j + s (nibble s of every word of 16 bits), step 2i + s of FP8 the columns
// 64i + 2j + s (byte s of every word), bfloat16 its columns as they lie.
#pragma once

#include <immintrin.h>

#include <cmath>
#include <cstring>
#include <limits>

#include "kernel.h"

namespace fourfold {
namespace {

constexpr index_t kStep = 32;   // columns a step
constexpr index_t kUnit = 128;  // columns decoded at once: a cache line of FP4
constexpr index_t kUnitSteps = kUnit / kStep;

// Smallest and largest e8m0 code whose products with any stored value are normal bfloat16 numbers.
constexpr int kLeastScale = 12, kMostScale = 240;

// 64 bytes of a row, of which `count` exist, zeros behind them.
template <bool whole>
FOURFOLD_INLINE __m512i line(const std::uint8_t* p, index_t count) {
    if (whole || count >= 64) return _mm512_loadu_si512(p);
    return _mm512_maskz_loadu_epi8(count <= 0 ? 0 : (__mmask64{1} << count) - 1, p);
}

// The 16 codes twice, as vpermw looks at five bits of its index.  Numbers stand 2^126 too high and zeros at 0, so that
// a saturating subtraction applies the scale and leaves zeros alone.
FOURFOLD_INLINE __m512i fp4_table() {
    const __m256i codes = _mm256_setr_epi16(0, 0x7e00, 0x7e80, 0x7ec0, 0x7f00, 0x7f40, 0x7f80, 0x7fc0, 0, short(0xfe00),
                                            short(0xfe80), short(0xfec0), short(0xff00), short(0xff40), short(0xff80),
                                            short(0xffc0));
    return _mm512_broadcast_i64x4(codes);
}

// What to take off the table's entries for 16 scales.
inline __m256i fp4_biases(__m128i scales) {
    return _mm256_slli_epi16(_mm256_sub_epi16(_mm256_set1_epi16(253), _mm256_cvtepu8_epi16(scales)), 7);
}

// Words 0-3, or 4-7, each over the quarter of a register that its group of 32 columns fills.
FOURFOLD_INLINE __m512i fp4_spread(index_t k) {
    const __m512i low = _mm512_setr_epi32(0x01000100, 0x01000100, 0x01000100, 0x01000100, 0x03020302, 0x03020302,
                                          0x03020302, 0x03020302, 0x05040504, 0x05040504, 0x05040504, 0x05040504,
                                          0x07060706, 0x07060706, 0x07060706, 0x07060706);
    return _mm512_add_epi8(low, _mm512_set1_epi8(k % (2 * kUnit) ? 8 : 0));
}

// Words with e4m3 in their upper byte -> bfloat16, for numbers that are not subnormal.
inline __m512i fp8_values(__m512i upper, __m512i bias) {
    const __m512i fields = _mm512_and_si512(_mm512_srai_epi16(upper, 4), _mm512_set1_epi16(short(0x87f0)));
    return _mm512_add_epi16(fields, bias);
}

// The same with subnormal numbers and zeros: mantissa * 2^-9 from a table of the eight.
inline __m512i fp8_small_values(__m512i upper, __m512i bias, __m512i subnormals) {
    const __mmask32 small = _mm512_testn_epi16_mask(upper, _mm512_set1_epi16(0x7800));
    const __m512i value = _mm512_permutexvar_epi16(_mm512_srli_epi16(upper, 8), subnormals);
    const __m512i with_sign =
        _mm512_or_si512(value, _mm512_and_si512(upper, _mm512_set1_epi16(short(0x8000))));
    return _mm512_mask_mov_epi16(fp8_values(upper, bias), small, with_sign);
}

// Indices 0-7 and 16-23 mean the mantissas: bit 4 of the index is the sign's neighbour, always 0 here.
inline __m512i subnormal_table(int e) {
    const __m512i values = _mm512_zextsi128_si512(
        _mm_setr_epi16(0, 0x3b00, 0x3b80, 0x3bc0, 0x3c00, 0x3c20, 0x3c40, 0x3c60));
    return _mm512_mask_add_epi16(values, 0xfe, values, _mm512_set1_epi16(short((e - 127) * 128)));
}

// Where column k stands in the order of columns.
inline index_t place_of(Format format, index_t k) {
    if (format == Format::Bf16) return k;
    const index_t parts = format == Format::Fp4 ? 4 : 2, unit = parts * kStep, i = k % unit;
    return k - i + i % parts * kStep + i / parts;
}

// x at even places, then at odd ones, of 64.
struct Split {
    __m512i even, odd;
};

inline Split split(__m512i low, __m512i high) {
    const __m512i evens = _mm512_cvtepu16_epi32(_mm256_setr_epi16(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15));
    // Word j of the index: 2j (of `low` up to 31, of `high` beyond).
    const __m512i twice = _mm512_slli_epi32(evens, 2);
    const __m512i index = _mm512_or_si512(twice, _mm512_slli_epi32(_mm512_add_epi32(twice, _mm512_set1_epi32(2)), 16));
    return {_mm512_permutex2var_epi16(low, index, high),
            _mm512_permutex2var_epi16(low, _mm512_add_epi16(index, _mm512_set1_epi16(1)), high)};
}

// A row of x in the order of columns in which these weights are decoded.
void arrange(Format format, const bf16_t* x, index_t columns, bf16_t* out) {
    const index_t width = Bf16Products::width(columns);
    for (index_t k = 0; k < width; k += kUnit) {
        __m512i in[kUnitSteps];
        for (index_t i = 0; i < kUnitSteps; ++i)
            in[i] = line<false>(reinterpret_cast<const std::uint8_t*>(x + k + i * kStep), 2 * (columns - k - i * kStep));
        if (format != Format::Bf16) {
            Split first = split(in[0], in[1]), second = split(in[2], in[3]);
            if (format == Format::Fp4) {
                const Split evens = split(first.even, second.even), odds = split(first.odd, second.odd);
                first = {evens.even, odds.even};
                second = {evens.odd, odds.odd};
            }
            in[0] = first.even, in[1] = first.odd, in[2] = second.even, in[3] = second.odd;
        }
        for (index_t i = 0; i < kUnitSteps; ++i) _mm512_storeu_si512(out + k + i * kStep, in[i]);
    }
}

inline float widened(bf16_t bits) { return from_bits(std::uint32_t{bits} << 16); }

float stored_value(const Matrix& m, index_t row, index_t k) {
    if (m.format == Format::Bf16) {
        bf16_t bits;
        std::memcpy(&bits, m.weight + row * m.row_bytes() + 2 * k, sizeof bits);
        return widened(bits);
    }
    if (m.format == Format::Fp8) {
        const int code = m.weight[row * m.row_bytes() + k], exponent = code >> 3 & 15, mantissa = code & 7;
        if ((code & 127) == 127) return std::numeric_limits<float>::quiet_NaN();
        const float v = exponent ? std::ldexp(8.f + mantissa, exponent - 10) : std::ldexp(float(mantissa), -9);
        return (code < 128 ? v : -v) * e8m0(m.scale[row / kFp8Block * m.scales_per_row() + k / kFp8Block]);
    }
    constexpr float values[8] = {0.f, 0.5f, 1.f, 1.5f, 2.f, 3.f, 4.f, 6.f};
    const int code = m.weight[row * m.row_bytes() + k / 2] >> 4 * (k % 2) & 15;
    return (code < 8 ? values[code] : -values[code - 8]) * e8m0(m.scale[row * m.scales_per_row() + k / kFp4Group]);
}

// The product of a row that bfloat16 cannot represent, one column after the other in float32; x(place) is the
// input at a place of the order above.
template <class Input>
float odd_product(const Matrix& m, index_t row, Input&& x) {
    float sum = 0.f;
    for (index_t k = 0; k < m.columns; ++k) sum += widened(x(place_of(m.format, k))) * stored_value(m, row, k);
    return sum;
}

}  // namespace
}  // namespace fourfold
