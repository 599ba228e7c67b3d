// FP4 weights as bytes, for products with inputs of 16 bits; AVX-512 VNNI and VBMI.
// Included by files with their own flags, hence the unnamed namespace.
//
// Twice an e2m1 value is a whole number of at most 12.  Within a chunk of 512 columns each of a row's groups of 32 is
// shifted left by its scale's distance from the row's base, three binades below its largest scale: a chunk's sums are
// whole numbers then, the same in whatever order.  Rows with a group below its base are "odd": their groups are scaled
// one by one.
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
constexpr int kDrop = 3;         // binades from the base to the largest scale
constexpr int kOffset = 12 << kDrop;  // makes weights unsigned

// A row of x: for each vector of a unit the upper bytes, then the lower ones, both signed; behind the last unit each
// chunk's scale, then what kOffset adds to its sums.
struct InputLayout {
    index_t units, chunks;
    explicit InputLayout(index_t columns) : units(ceil_div(columns, kUnit)), chunks(ceil_div(columns, kChunk)) {}
    static constexpr index_t unit = 4 * kVector;
    index_t scales() const { return units * unit; }
    index_t offsets() const { return scales() + round_up(4 * chunks, kVector); }
    index_t bytes() const { return offsets() + round_up(4 * chunks, kVector); }
};

// Doubled values times 1, 2, 4 and 8, plus `offset`.
FOURFOLD_INLINE __m512i value_table(int offset) {
    const __m128i values = _mm_setr_epi8(0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12);
    const __m128i twice = _mm_add_epi8(values, values), four = _mm_add_epi8(twice, twice);
    const __m256i low = _mm256_set_m128i(twice, values), high = _mm256_set_m128i(_mm_add_epi8(four, four), four);
    return _mm512_add_epi8(_mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1), _mm512_set1_epi8(char(offset)));
}

// Of four chunks, a quarter of a register each: their scales' codes give
struct Scales {
    __m512i shifts;  // 16 times the shift of each group
    __m512i units;   // the float that 1 of the chunk's sums is worth, four times
    __mmask64 odd;   // groups that cannot be shifted so

    FOURFOLD_INLINE explicit Scales(__m512i codes) {
        __m512i most = _mm512_max_epu8(codes, _mm512_shuffle_epi32(codes, _MM_PERM_BADC));
        most = _mm512_max_epu8(most, _mm512_shuffle_epi32(most, _MM_PERM_CDAB));
        most = _mm512_max_epu8(most, _mm512_rol_epi32(most, 16));
        most = _mm512_max_epu8(most, _mm512_rol_epi32(most, 8));
        const __m512i base = _mm512_subs_epu8(most, _mm512_set1_epi8(kDrop));
        const __m512i shift = _mm512_sub_epi8(codes, base);  // one below the base is a large one
        // 1 is worth 2^(base - 128), which is a normal float from 2 on; 255 is NaN.
        odd = _mm512_cmpgt_epu8_mask(shift, _mm512_set1_epi8(kDrop)) | _mm512_cmplt_epu8_mask(base, _mm512_set1_epi8(2)) |
              _mm512_cmpeq_epu8_mask(most, _mm512_set1_epi8(char(255)));
        shifts = _mm512_slli_epi16(_mm512_and_si512(shift, _mm512_set1_epi8(kDrop)), 4);
        const __m512i exponents = _mm512_sub_epi32(_mm512_and_si512(base, _mm512_set1_epi32(255)), _mm512_set1_epi32(1));
        units = _mm512_slli_epi32(exponents, 23);
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
    constexpr int and_or = 0xea;
    const auto value = [&](__m512i v) {
        return _mm512_permutexvar_epi8(_mm512_ternarylogic_epi32(v, nibble, shift, and_or), table);
    };
    return {value(codes), value(_mm512_srli_epi16(codes, 4))};
}

// 64 bytes of a row, of which `count` exist, zeros behind them.
template <bool whole>
FOURFOLD_INLINE __m512i line(const std::uint8_t* p, index_t count) {
    if (whole || count >= kVector) return _mm512_loadu_si512(p);
    return _mm512_maskz_loadu_epi8(count <= 0 ? 0 : (__mmask64{1} << count) - 1, p);
}

void pack_int16(const float* x, index_t columns, std::uint8_t* packed) {
    const InputLayout layout(columns);
    std::memset(packed, 0, layout.bytes());
    const __m512i evens = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    const __m512i odds = _mm512_add_epi32(evens, _mm512_set1_epi32(1));
    for (index_t k = 0; k < columns; k += kChunk) {
        const index_t count = std::min(kChunk, columns - k), chunk = k / kChunk;
        float whole[kChunk];
        const float scale = round_int16_group(x + k, count, whole);
        __m512i sum = _mm512_setzero_si512();
        for (index_t i = 0; i < count; i += kFp4Group) {
            const __m512i low = _mm512_cvtps_epi32(_mm512_loadu_ps(whole + i));
            const __m512i high = _mm512_cvtps_epi32(_mm512_loadu_ps(whole + i + 16));
            sum = _mm512_add_epi32(sum, _mm512_add_epi32(low, high));
            std::uint8_t* at = packed + (k + i) / kUnit * InputLayout::unit + i % kUnit / 2;
            const auto store = [&](std::uint8_t* p, __m512i v) {
                const __m512i upper = _mm512_srai_epi32(_mm512_add_epi32(v, _mm512_set1_epi32(128)), 8);
                _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(upper));
                _mm_storeu_si128(reinterpret_cast<__m128i*>(p + kVector), _mm512_cvtepi32_epi8(v));
            };
            store(at, _mm512_permutex2var_epi32(low, evens, high));
            store(at + 2 * kVector, _mm512_permutex2var_epi32(low, odds, high));
        }
        const std::int32_t offset = kOffset * _mm512_reduce_add_epi32(sum);
        std::memcpy(packed + layout.scales() + 4 * chunk, &scale, sizeof scale);
        std::memcpy(packed + layout.offsets() + 4 * chunk, &offset, sizeof offset);
    }
}

}  // namespace
}  // namespace fourfold
