// Products of FP4 with inputs of 16 bits for up to three tokens: weights are decoded in registers, row after row.
#pragma once

#include "int16_decode.h"

namespace fourfold {
namespace {

constexpr index_t kSpan = 4 * kChunk;  // columns whose scales fill a register

// The processor's own prefetching follows a row to the end of its page and no further.
FOURFOLD_INLINE void fetch_page_start(const std::uint8_t* p) {
    constexpr std::uintptr_t page = 4096, start = 8 * kVector;
    if (reinterpret_cast<std::uintptr_t>(p) % page < start)
        _mm_prefetch(reinterpret_cast<const char*>(p + page), _MM_HINT_T1);
}

// The sums of four vectors' words.
FOURFOLD_INLINE __m128i sums_of(const __m512i (&v)[4]) {
    const __m512i a = _mm512_add_epi32(_mm512_unpacklo_epi32(v[0], v[1]), _mm512_unpackhi_epi32(v[0], v[1]));
    const __m512i b = _mm512_add_epi32(_mm512_unpacklo_epi32(v[2], v[3]), _mm512_unpackhi_epi32(v[2], v[3]));
    const __m512i c = _mm512_add_epi32(_mm512_unpacklo_epi64(a, b), _mm512_unpackhi_epi64(a, b));
    const __m256i d = _mm256_add_epi32(_mm512_castsi512_si256(c), _mm512_extracti64x4_epi64(c, 1));
    return _mm_add_epi32(_mm256_castsi256_si128(d), _mm256_extracti128_si256(d, 1));
}

// A row's codes and T rows of x from column k on.
template <int T>
struct Span {
    const std::uint8_t* codes;
    index_t columns;  // that are left
    const std::uint8_t* x[T];
};

// sum[t] += weights (unsigned) times x[t] of unit u, by lane.
template <int T>
FOURFOLD_INLINE void add_unit(const Span<T>& s, index_t u, const Vectors& w, __m512i (&upper)[T], __m512i (&lower)[T]) {
    for (int t = 0; t < T; ++t) {
        const std::uint8_t* x = s.x[t] + u * InputLayout::unit;
        upper[t] = _mm512_dpbusd_epi32(upper[t], w.even, _mm512_loadu_si512(x));
        lower[t] = _mm512_dpbusd_epi32(lower[t], w.even, _mm512_loadu_si512(x + kVector));
        upper[t] = _mm512_dpbusd_epi32(upper[t], w.odd, _mm512_loadu_si512(x + 2 * kVector));
        lower[t] = _mm512_dpbusd_epi32(lower[t], w.odd, _mm512_loadu_si512(x + 3 * kVector));
    }
}

// Chunk c of the span: v[t][c] is its sum by lane.
template <bool whole, int T>
FOURFOLD_INLINE void add_chunk(const Span<T>& s, const std::uint8_t* shifts, index_t c, __m512i table, __m512i (&v)[T][4]) {
    __m512i upper[T], lower[T];
    for (int t = 0; t < T; ++t) upper[t] = lower[t] = _mm512_setzero_si512();
    const index_t units = whole ? kChunkUnits : std::min(kChunkUnits, ceil_div(s.columns - c * kChunk, kUnit));
#pragma GCC unroll 4
    for (index_t i = 0; i < units; ++i) {
        const index_t u = c * kChunkUnits + i;
        const std::uint8_t* p = s.codes + u * kVector;
        fetch_page_start(p);
        add_unit(s, u, decode_unit(line<whole>(p, s.columns / 2 - u * kVector), shifts + 4 * u, table), upper, lower);
    }
    for (int t = 0; t < T; ++t) v[t][c] = _mm512_add_epi32(_mm512_slli_epi32(upper[t], 8), lower[t]);
}

// total[t] += the products of one span; true: a group is odd.
template <int T>
FOURFOLD_INLINE bool add_span(const Span<T>& s, const std::uint8_t* codes, const std::uint8_t* const (&tail)[T],
                              index_t offsets, __m512i table, float (&total)[T]) {
    const Scales scales(chunk_codes(codes, std::min(s.columns, kSpan) / kFp4Group));
    alignas(64) std::uint8_t shifts[64];
    alignas(64) float units[16];
    _mm512_store_si512(shifts, scales.shifts);
    _mm512_store_si512(units, scales.units);
    const index_t chunks = std::min<index_t>(4, ceil_div(s.columns, kChunk));
    __m512i v[T][4];
    if (s.columns >= kSpan) {
#pragma GCC unroll 4
        for (index_t c = 0; c < 4; ++c) add_chunk<true, T>(s, shifts, c, table, v);
    } else {
        for (int t = 0; t < T; ++t) std::fill(v[t], v[t] + 4, _mm512_setzero_si512());
        for (index_t c = 0; c < chunks; ++c) add_chunk<false, T>(s, shifts, c, table, v);
    }
    for (int t = 0; t < T; ++t) {
        const __m128i offset = _mm_loadu_si128(reinterpret_cast<const __m128i*>(tail[t] + offsets));
        const __m128 whole = _mm_cvtepi32_ps(_mm_sub_epi32(sums_of(v[t]), offset));
        alignas(16) float part[4];
        _mm_store_ps(part, _mm_mul_ps(whole, _mm_loadu_ps(reinterpret_cast<const float*>(tail[t]))));
        for (index_t c = 0; c < chunks; ++c) total[t] = std::fma(part[c], units[4 * c], total[t]);
    }
    return scales.odd != 0;
}

// The product of an odd row with a row of x, group by group.
float odd_product(const Matrix& m, index_t row, const std::uint8_t* x) {
    const InputLayout layout(m.columns);
    const std::uint8_t *codes = m.weight + row * m.row_bytes(), *scale = m.scale + row * m.scales_per_row();
    const __m512i table = value_table(12);
    const std::uint8_t none[4] = {};
    float total = 0.f;
    for (index_t u = 0; u < layout.units; ++u) {
        const Vectors w = decode_unit(line<false>(codes + u * kVector, m.row_bytes() - u * kVector), none, table);
        const Span<1> span{nullptr, 0, {x}};
        __m512i upper[1] = {_mm512_setzero_si512()}, lower[1] = {_mm512_setzero_si512()};
        __m512i upper_offset[1] = {_mm512_setzero_si512()}, lower_offset[1] = {_mm512_setzero_si512()};
        add_unit(span, u, w, upper, lower);
        add_unit(span, u, {_mm512_set1_epi8(12), _mm512_set1_epi8(12)}, upper_offset, lower_offset);
        alignas(64) std::int32_t lanes[16];
        _mm512_store_si512(lanes, _mm512_add_epi32(
            _mm512_slli_epi32(_mm512_sub_epi32(upper[0], upper_offset[0]), 8), _mm512_sub_epi32(lower[0], lower_offset[0])));
        float unit;
        std::memcpy(&unit, x + layout.scales() + u / kChunkUnits * 4, sizeof unit);
        for (index_t g = 0; g < 4 && (4 * u + g) < m.scales_per_row(); ++g) {
            const std::int32_t* sum = lanes + 4 * g;
            total = std::fma(float(sum[0] + sum[1] + sum[2] + sum[3]) * unit, e8m0(scale[4 * u + g]) * 0.5f, total);
        }
    }
    return total;
}

template <int T>
void few(const Matrix& m, index_t begin, index_t end, const std::uint8_t* const* x, float* const* y) {
    const InputLayout layout(m.columns);
    const __m512i table = value_table(kOffset);
    const index_t tail = layout.scales(), offsets = layout.offsets() - tail;
    for (index_t row = begin; row < end; ++row) {
        const std::uint8_t *codes = m.weight + row * m.row_bytes(), *scale = m.scale + row * m.scales_per_row();
        float total[T] = {};
        bool odd = false;
        for (index_t k = 0; k < m.columns; k += kSpan) {
            Span<T> span{codes + k / 2, m.columns - k, {}};
            const std::uint8_t* behind[T];
            for (int t = 0; t < T; ++t) {
                span.x[t] = x[t] + k / kUnit * InputLayout::unit;
                behind[t] = x[t] + tail + k / kChunk * 4;
            }
            odd |= add_span<T>(span, scale + k / kFp4Group, behind, offsets, table, total);
        }
        for (int t = 0; t < T; ++t) y[t][row] = odd ? odd_product(m, row, x[t]) : total[t];
    }
}

}  // namespace
}  // namespace fourfold
