// Weights from the checkpoint's layout into tiles of bfloat16, for kernel_amx.cpp alone.
#pragma once

#include <algorithm>

#include "amx_tiles.h"
#include "bf16_decode.h"

namespace fourfold {
namespace {

constexpr index_t kSlab = 32;   // matrix rows worked on at once: two tiles of sums for each block of tokens
constexpr index_t kSpan = 512;  // columns whose scales are looked at together

// Weights decoded for one unit: [step][half of the slab][row][column].
using Tiles = bf16_t[kUnitSteps][kSlab / kTile][kTile][kStep];

constexpr index_t kQuarter = kSlab / kUnitSteps;  // rows decoded between two steps
constexpr index_t kNextStep = kSlab * kStep;      // from a row's place in one step to the next

// A slab of the matrix on its way through the columns.
struct Slab {
    const Matrix& matrix;
    index_t end;         // of the rows at hand
    index_t row, count;  // first row, rows that exist
    bool odd[kSlab];     // rows with NaNs or scales beyond bfloat16: another kernel computes those
    bool any_odd;
    alignas(64) std::uint16_t fp4_bias[kSlab][kSpan / kFp4Group];  // what to take off the table's entries

    Slab(const Matrix& m, index_t row, index_t end) : matrix(m), end(end) { move_to(row); }

    void move_to(index_t first) {
        row = first;
        count = std::min(kSlab, end - row);
        any_odd = false;
        std::memset(odd, 0, sizeof odd);
    }
    void mark(index_t r) { odd[r] = any_odd = true; }
    const std::uint8_t* at(index_t offset) const { return matrix.weight + row * matrix.row_bytes() + offset; }
};

// Where the slab's bytes of one unit lie, and those that will be wanted in a while: `away` further in the same row, or
// beyond its end in the slab below.
struct Place {
    const std::uint8_t* first;  // of the slab's first row
    index_t stride, width;      // bytes from row to row, and those of a row that are left
    index_t ahead;

    Place(const Slab& s, index_t offset, index_t away)
        : first(s.at(offset)), stride(s.matrix.row_bytes()), width(stride - offset),
          ahead(away < width ? away : away + (kSlab - 1) * stride) {}
    // Inlined by force: GCC takes a function that only prefetches for one without effect, and drops its calls.
    FOURFOLD_INLINE void fetch(const std::uint8_t* p, index_t bytes) const {
        for (index_t i = 0; i < bytes; i += 64)
            _mm_prefetch(reinterpret_cast<const char*>(p + ahead + i), _MM_HINT_T1);
    }
};

// The slab's scales for columns from k on, at most kSpan of them.
void prepare_fp4(Slab& s, index_t k) {
    constexpr index_t most = kSpan / kFp4Group;
    const index_t groups = std::min(most, (s.matrix.columns - k) / kFp4Group), per_row = s.matrix.scales_per_row();
    const __mmask16 inside = __mmask16((1u << groups) - 1);
    const __m128i middle = _mm_set1_epi8(127);
    const auto codes = [&](index_t r) {
        return _mm_mask_loadu_epi8(middle, inside, s.matrix.scale + (s.row + r) * per_row + k / kFp4Group);
    };
    const auto odd = [](__m128i e) {
        return _mm_cmplt_epu8_mask(e, _mm_set1_epi8(kLeastScale)) | _mm_cmpgt_epu8_mask(e, _mm_set1_epi8(char(kMostScale)));
    };
    __m128i least = middle, largest = middle;
    for (index_t r = 0; r < s.count; ++r) {
        const __m128i e = codes(r);
        least = _mm_min_epu8(least, e);
        largest = _mm_max_epu8(largest, e);
        _mm256_store_si256(reinterpret_cast<__m256i*>(s.fp4_bias[r]), fp4_biases(e));
    }
    if (odd(least) | odd(largest)) [[unlikely]]
        for (index_t r = 0; r < s.count; ++r)
            if (odd(codes(r))) s.mark(r);
}

struct Fp4Unit {
    static constexpr index_t bytes = kUnit / 2;
    Place place;
    const std::uint16_t* bias;  // of the first row's groups, and of as many others
    __m512i table, spread;

    FOURFOLD_INLINE Fp4Unit(Slab& s, index_t k)
        : place(s, k / 2, 128), bias(&s.fp4_bias[0][k % kSpan / (2 * kUnit) * 8]), table(fp4_table()),
          spread(fp4_spread(k)) {
        if (k % kSpan == 0) prepare_fp4(s, k);
    }

    template <bool whole>
    FOURFOLD_INLINE void row(Slab&, index_t r, const std::uint8_t* p, bf16_t* out) const {
        const __m512i words = line<whole>(p, place.width);
        const auto* groups = reinterpret_cast<const __m128i*>(bias + r * (kSpan / kFp4Group));
        const __m512i scales = _mm512_shuffle_epi8(_mm512_broadcast_i32x4(_mm_load_si128(groups)), spread);
        const auto value = [&](__m512i codes) {
            return _mm512_subs_epu16(_mm512_permutexvar_epi16(codes, table), scales);
        };
        _mm512_store_si512(out, value(words));
        _mm512_store_si512(out + kNextStep, value(_mm512_srli_epi16(words, 4)));
        _mm512_store_si512(out + 2 * kNextStep, value(_mm512_srli_epi16(words, 8)));
        _mm512_store_si512(out + 3 * kNextStep, value(_mm512_srli_epi16(words, 12)));
    }
};

// Half a unit of one row; true: it has NaNs.
FOURFOLD_INLINE bool decode_fp8_line(__m512i codes, __m512i bias, __m512i subnormals, bf16_t* out) {
    const __m512i magnitudes = _mm512_and_si512(codes, _mm512_set1_epi8(0x7f));
    const __m512i lower = _mm512_slli_epi16(codes, 8);
    if (_mm512_testn_epi8_mask(codes, _mm512_set1_epi8(0x78))) [[unlikely]] {  // one weight in thousands
        _mm512_store_si512(out, fp8_small_values(lower, bias, subnormals));
        _mm512_store_si512(out + kNextStep, fp8_small_values(codes, bias, subnormals));
    } else {
        _mm512_store_si512(out, fp8_values(lower, bias));
        _mm512_store_si512(out + kNextStep, fp8_values(codes, bias));
    }
    return _mm512_cmpeq_epi8_mask(magnitudes, _mm512_set1_epi8(0x7f)) != 0;
}

struct Fp8Unit {
    static constexpr index_t bytes = kUnit;
    Place place;
    __m512i bias, subnormals;
    bool extreme;

    // A slab begins at a multiple of 32 rows and a unit is a block wide, so one scale serves all of it.
    FOURFOLD_INLINE Fp8Unit(Slab& s, index_t k) : place(s, k, 1024) {
        const int e = s.matrix.scale[s.row / kFp8Block * s.matrix.scales_per_row() + k / kFp8Block];
        bias = _mm512_set1_epi16(short((e - 7) * 128));
        subnormals = subnormal_table(e);
        extreme = e < kLeastScale || e > kMostScale;
    }

    template <bool whole>
    FOURFOLD_INLINE void row(Slab& s, index_t r, const std::uint8_t* p, bf16_t* out) const {
        const bool left = decode_fp8_line(line<whole>(p, place.width), bias, subnormals, out);
        const bool right =
            decode_fp8_line(line<whole>(p + 64, place.width - 64), bias, subnormals, out + 2 * kNextStep);
        if (left || right || extreme) [[unlikely]] s.mark(r);
    }
};

struct Bf16Unit {
    static constexpr index_t bytes = 2 * kUnit;
    Place place;

    Bf16Unit(Slab& s, index_t k) : place(s, 2 * k, 1024) {}

    template <bool whole>
    FOURFOLD_INLINE void row(Slab&, index_t, const std::uint8_t* p, bf16_t* out) const {
        for (index_t i = 0; i < kUnitSteps; ++i)
            _mm512_store_si512(out + i * kNextStep, line<whole>(p + 64 * i, place.width - 64 * i));
    }
};

template <bool whole, class Unit>
FOURFOLD_INLINE void decode_rows(Slab& s, const Unit& unit, index_t begin, index_t count, bf16_t* out) {
    const std::uint8_t* p = unit.place.first + begin * unit.place.stride;
#pragma GCC unroll 8
    for (index_t r = 0; r < count; ++r, p += unit.place.stride) {
        unit.place.fetch(p, Unit::bytes);
        unit.template row<whole>(s, begin + r, p, out + r * kStep);
    }
}

// A quarter of the slab's rows of one unit.  Rows that the slab lacks keep what was there: nobody reads their sums.
template <class Unit>
FOURFOLD_INLINE void decode_quarter(Slab& s, const Unit& unit, index_t quarter, Tiles& tiles) {
    const index_t begin = quarter * kQuarter;
    bf16_t* out = tiles[0][begin / kTile][begin % kTile];
    if (s.count == kSlab && unit.place.width >= Unit::bytes) [[likely]]
        decode_rows<true>(s, unit, begin, kQuarter, out);
    else
        decode_rows<false>(s, unit, begin, std::clamp<index_t>(s.count - begin, 0, kQuarter), out);
}

}  // namespace
}  // namespace fourfold
