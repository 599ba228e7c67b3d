// FP4 weights as bytes, for products with inputs of 16 bits; AVX-512 VNNI and VBMI.
// Included by files with their own flags, hence the unnamed namespace.
//
// Twice an e2m1 value is a whole number of at most 12.  Within a chunk of 512 columns each of a row's groups of 32 is
// shifted left by its scale's distance from the row's base, three binades below its largest scale: a chunk's sums are
// whole numbers then, the same in whatever order.  Groups below the base are zeros there and come in a further pass, with
// the base of those that are left, until there are none; groups whose weights are all zero are never left.
//
// A unit of 128 columns is a cache line of codes and two vectors of bytes: the even columns, then the odd ones.
#pragma once

#include <immintrin.h>

#include <algorithm>

#include "int16_rounding.h"
#include "kernel.h"

namespace fourfold {
namespace {

constexpr index_t kUnit = 128;
constexpr index_t kChunk = kInt16Group, kChunkUnits = kChunk / kUnit, kChunkGroups = kChunk / kFp4Group;
constexpr index_t kVector = 64;  // bytes
constexpr int kDrop = 3;   // binades from the base to the largest scale
constexpr int kMost = 12;  // twice the largest weight

// A row of x: for each vector of a unit the upper bytes, then the lower ones, both signed; behind the last unit each
// chunk's scale.
struct InputLayout {
    index_t units, chunks;
    explicit InputLayout(index_t columns) : units(ceil_div(columns, kUnit)), chunks(ceil_div(columns, kChunk)) {}
    static constexpr index_t unit = 4 * kVector;
    index_t scales() const { return units * unit; }
    index_t bytes() const { return scales() + round_up(4 * chunks, kVector); }
};

// Doubled values times 1, 2, 4 and 8, plus `offset`; a code's value is at its complement.
FOURFOLD_INLINE __m512i value_table(int offset) {
    const __m128i values = _mm_setr_epi8(-12, -8, -6, -4, -3, -2, -1, 0, 12, 8, 6, 4, 3, 2, 1, 0);
    const __m128i twice = _mm_add_epi8(values, values), four = _mm_add_epi8(twice, twice);
    const __m256i low = _mm256_set_m128i(twice, values), high = _mm256_set_m128i(_mm_add_epi8(four, four), four);
    return _mm512_add_epi8(_mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1), _mm512_set1_epi8(char(offset)));
}

constexpr char kBlank = 15;  // in place of a shift: the group's weights are zeros

// Of four chunks, a quarter of a register each: one pass over the groups `of` them, whose scales have these codes.
struct Scales {
    __m512i shifts;  // 16 times the shift of each group, or kBlank
    __m512i units;   // the float that 1 of the chunk's sums is worth, four times
    __mmask64 left;  // groups for a further pass, unless their weights are zeros

    FOURFOLD_INLINE explicit Scales(__m512i codes, __mmask64 of = ~__mmask64{0}) {
        codes = _mm512_maskz_mov_epi8(of, codes);
        __m512i most = _mm512_max_epu8(codes, _mm512_shuffle_epi32(codes, _MM_PERM_BADC));
        most = _mm512_max_epu8(most, _mm512_shuffle_epi32(most, _MM_PERM_CDAB));
        most = _mm512_max_epu8(most, _mm512_rol_epi32(most, 16));
        most = _mm512_max_epu8(most, _mm512_rol_epi32(most, 8));
        const __m512i base = _mm512_subs_epu8(most, _mm512_set1_epi8(kDrop));
        const __m512i shift = _mm512_sub_epi8(codes, base), drop = _mm512_set1_epi8(kDrop);
        const __mmask64 below = _mm512_cmpgt_epu8_mask(shift, drop);  // a negative shift is a large one
        left = below & of;
        const __m512i sixteenfold = _mm512_slli_epi16(_mm512_and_si512(shift, drop), 4);
        shifts = _mm512_mask_mov_epi8(sixteenfold, below | ~of, _mm512_set1_epi8(kBlank));
        // 1 is worth 2^(base - 128), a subnormal float below 2; 255 is NaN.
        const __m512i exponent = _mm512_sub_epi32(_mm512_and_si512(base, _mm512_set1_epi32(255)), _mm512_set1_epi32(128));
        const __m512 power = _mm512_scalef_ps(_mm512_set1_ps(1.f), _mm512_cvtepi32_ps(exponent));
        const __mmask16 nan = _mm512_cmpeq_epi32_mask(most, _mm512_set1_epi32(-1));
        units = _mm512_mask_mov_epi32(_mm512_castps_si512(power), nan, _mm512_set1_epi32(0x7fc00000));
    }
};

// Codes of groups [0, groups) of 16 or 64, of which others do not exist: those repeat the chunk's largest one.
FOURFOLD_INLINE __m512i chunk_codes(const std::uint8_t* p, index_t groups) {
    if (groups >= 64) return _mm512_loadu_si512(p);
    const std::uint8_t most = *std::max_element(p + (groups - 1) / kChunkGroups * kChunkGroups, p + groups);
    return _mm512_mask_loadu_epi8(_mm512_set1_epi8(char(most)), (__mmask64{1} << groups) - 1, p);
}

// A unit as two vectors.
struct Vectors {
    __m512i even, odd;
};

// codes: the unit's line; shifts: of its four groups, as in Scales.
FOURFOLD_INLINE Vectors decode_unit(__m512i codes, const std::uint8_t* shifts, __m512i table) {
    std::uint32_t four;
    std::memcpy(&four, shifts, sizeof four);
    const __m512i by_quarter = _mm512_setr_epi32(0, 0, 0, 0, 0x01010101, 0x01010101, 0x01010101, 0x01010101, 0x02020202,
                                                 0x02020202, 0x02020202, 0x02020202, 0x03030303, 0x03030303, 0x03030303,
                                                 0x03030303);
    const __m512i shift = _mm512_shuffle_epi8(_mm512_set1_epi32(int(four)), by_quarter), nibble = _mm512_set1_epi8(15);
    constexpr int not_and_or = 0xae;
    const auto value = [&](__m512i v) {
        return _mm512_permutexvar_epi8(_mm512_ternarylogic_epi32(v, nibble, shift, not_and_or), table);
    };
    return {value(codes), value(_mm512_srli_epi16(codes, 4))};
}

// 64 bytes of a row, of which `count` exist, zeros behind them.
template <bool whole>
FOURFOLD_INLINE __m512i line(const std::uint8_t* p, index_t count) {
    if (whole || count >= kVector) return _mm512_loadu_si512(p);
    return _mm512_maskz_loadu_epi8(count <= 0 ? 0 : (__mmask64{1} << count) - 1, p);
}

// Bits 0-15: which groups of a chunk have weights that are not zero.
FOURFOLD_INLINE std::uint64_t groups_with_weights(const std::uint8_t* codes, index_t bytes) {
    std::uint64_t words = 0;  // four a group
    for (index_t u = 0; u < kChunkUnits; ++u) {
        const __m512i stored = line<false>(codes + u * kVector, bytes - u * kVector);
        words |= std::uint64_t{_mm512_test_epi32_mask(stored, _mm512_set1_epi8(0x77))} << 16 * u;
    }
    words |= words >> 1;
    words |= words >> 2;
    return _pext_u64(words, 0x1111111111111111);
}

void pack_int16(const float* x, index_t columns, std::uint8_t* packed) {
    const InputLayout layout(columns);
    std::memset(packed, 0, layout.bytes());
    const __m512i evens = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    const __m512i odds = _mm512_add_epi32(evens, _mm512_set1_epi32(1));
    for (index_t k = 0; k < columns; k += kChunk) {
        const index_t count = std::min(kChunk, columns - k);
        float whole[kChunk];
        const float scale = round_int16_group(x + k, count, whole);
        for (index_t i = 0; i < count; i += kFp4Group) {
            const __m512i low = _mm512_cvtps_epi32(_mm512_loadu_ps(whole + i));
            const __m512i high = _mm512_cvtps_epi32(_mm512_loadu_ps(whole + i + 16));
            std::uint8_t* at = packed + (k + i) / kUnit * InputLayout::unit + i % kUnit / 2;
            const auto store = [&](std::uint8_t* p, __m512i v) {
                const __m512i upper = _mm512_srai_epi32(_mm512_add_epi32(v, _mm512_set1_epi32(128)), 8);
                _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(upper));
                _mm_storeu_si128(reinterpret_cast<__m128i*>(p + kVector), _mm512_cvtepi32_epi8(v));
            };
            store(at, _mm512_permutex2var_epi32(low, evens, high));
            store(at + 2 * kVector, _mm512_permutex2var_epi32(low, odds, high));
        }
        std::memcpy(packed + layout.scales() + k / kChunk * 4, &scale, sizeof scale);
    }
}

}  // namespace
}  // namespace fourfold
