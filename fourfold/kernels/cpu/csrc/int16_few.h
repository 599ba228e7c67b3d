// Products of FP4 with inputs of 16 bits for up to three tokens: weights are decoded in registers, row after row.
#pragma once

#include "int16_decode.h"
#include "scratch.h"

namespace fourfold {
namespace {

constexpr index_t kSpan = 4 * kChunk;  // columns whose scales fill a register

// The processor's own prefetching follows a row to the end of its page and no further.
FOURFOLD_INLINE void fetch_page_start(const std::uint8_t* p) {
    constexpr std::uintptr_t page = 4096, start = 8 * kVector;
    if (reinterpret_cast<std::uintptr_t>(p) % page < start)
        _mm_prefetch(reinterpret_cast<const char*>(p + page), _MM_HINT_T1);
}

// The sums of each four lanes of four vectors.
FOURFOLD_INLINE __m512i group_sums(const __m512i (&v)[4]) {
    const __m512i a = _mm512_add_epi32(_mm512_unpacklo_epi32(v[0], v[1]), _mm512_unpackhi_epi32(v[0], v[1]));
    const __m512i b = _mm512_add_epi32(_mm512_unpacklo_epi32(v[2], v[3]), _mm512_unpackhi_epi32(v[2], v[3]));
    return _mm512_add_epi32(_mm512_unpacklo_epi64(a, b), _mm512_unpackhi_epi64(a, b));
}

// The sums of four vectors' words.
FOURFOLD_INLINE __m128i sums_of(const __m512i (&v)[4]) {
    const __m512i c = group_sums(v);
    const __m256i d = _mm256_add_epi32(_mm512_castsi512_si256(c), _mm512_extracti64x4_epi64(c, 1));
    return _mm_add_epi32(_mm256_castsi256_si128(d), _mm256_extracti128_si256(d, 1));
}

// A row's codes and T rows of x from column k on.
template <int T>
struct Span {
    const std::uint8_t* codes;
    index_t columns;  // that are left
    const std::uint8_t* x[T];
    const float* scales[T];                // of x, by chunk
    const std::int32_t* chunk_offsets[T];  // what is added to unsigned weights, kMost << kDrop, adds to a chunk's sum
    const std::int32_t* group_offsets[T];  // what kMost adds to a group's, as group_sums has them

    FOURFOLD_INLINE void move() {
        codes += kSpan / 2, columns -= kSpan;
        for (int t = 0; t < T; ++t) {
            x[t] += kSpan / kUnit * InputLayout::unit;
            scales[t] += kSpan / kChunk, chunk_offsets[t] += kSpan / kChunk, group_offsets[t] += kSpan / kFp4Group;
        }
    }
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

// Units of chunk c that exist.
template <int T>
index_t units_of(const Span<T>& s, index_t c) {
    return std::clamp<index_t>(ceil_div(s.columns - c * kChunk, kUnit), 0, kChunkUnits);
}

// Chunk c of the span: v[t][c] is its sum by lane.
template <bool whole, int T>
FOURFOLD_INLINE void add_chunk(const Span<T>& s, const std::uint8_t* shifts, index_t c, __m512i table, __m512i (&v)[T][4]) {
    __m512i upper[T], lower[T];
    for (int t = 0; t < T; ++t) upper[t] = lower[t] = _mm512_setzero_si512();
    const index_t units = whole ? kChunkUnits : units_of(s, c);
#pragma GCC unroll 4
    for (index_t i = 0; i < units; ++i) {
        const index_t u = c * kChunkUnits + i;
        const std::uint8_t* p = s.codes + u * kVector;
        fetch_page_start(p);
        add_unit(s, u, decode_unit(line<whole>(p, s.columns / 2 - u * kVector), shifts + 4 * u, table), upper, lower);
    }
    for (int t = 0; t < T; ++t) v[t][c] = _mm512_add_epi32(_mm512_slli_epi32(upper[t], 8), lower[t]);
}

// The sums of chunk c's groups, from weights as weights(u) gives them for its units.
template <int T, class Weights>
FOURFOLD_INLINE void add_groups(const Span<T>& s, index_t c, Weights&& weights, __m512i (&sums)[T]) {
    __m512i v[T][4];
    for (int t = 0; t < T; ++t) std::fill(v[t], v[t] + 4, _mm512_setzero_si512());
    for (index_t i = 0; i < units_of(s, c); ++i) {
        __m512i upper[T], lower[T];
        for (int t = 0; t < T; ++t) upper[t] = lower[t] = _mm512_setzero_si512();
        add_unit(s, c * kChunkUnits + i, weights(c * kChunkUnits + i), upper, lower);
        for (int t = 0; t < T; ++t) v[t][i] = _mm512_add_epi32(_mm512_slli_epi32(upper[t], 8), lower[t]);
    }
    for (int t = 0; t < T; ++t) sums[t] = group_sums(v[t]);
}

// total[t] += the products of a span that needs further passes: decoded once, its groups summed apart, then those of each
// pass together.
template <int T>
__attribute__((noinline)) void add_wide_span(const Span<T>& s, __m512i codes, float (&total)[T]) {
    constexpr index_t most = kChunkGroups;  // passes
    const __m512i table = value_table(kMost);
    const std::uint8_t none[4] = {};
    const auto decoded = [&](index_t u) {
        fetch_page_start(s.codes + u * kVector);
        return decode_unit(line<false>(s.codes + u * kVector, s.columns / 2 - u * kVector), none, table);
    };
    __m512i groups[4][T];
    std::uint64_t weights = 0;
    for (index_t c = 0; c < 4; ++c) {
        add_groups(s, c, decoded, groups[c]);
        if (c * kChunk >= s.columns) continue;
        weights |= groups_with_weights(s.codes + c * kChunk / 2, (s.columns - c * kChunk) / 2) << c * kChunkGroups;
        for (int t = 0; t < T; ++t)
            groups[c][t] = _mm512_sub_epi32(groups[c][t], _mm512_loadu_si512(s.group_offsets[t] + c * kChunkGroups));
    }
    const __m512i as_summed = _mm512_broadcast_i32x4(_mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
    alignas(64) float units[most][16], parts[most][T][4];
    __mmask64 of[most], left = ~__mmask64{0};
    index_t passes = 0;
    for (; left; ++passes) {
        const Scales scales(codes, left);
        alignas(64) std::uint8_t shifts[64];
        _mm512_store_si512(shifts, _mm512_shuffle_epi8(scales.shifts, as_summed));
        _mm512_store_si512(units[passes], scales.units);
        for (int t = 0; t < T; ++t) {
            __m512i v[4];
            for (index_t c = 0; c < 4; ++c) {
                // kBlank turns into more than 31, which leaves nothing.
                const __m128i own = _mm_load_si128(reinterpret_cast<const __m128i*>(shifts + c * kChunkGroups));
                v[c] = _mm512_sllv_epi32(groups[c][t], _mm512_ror_epi32(_mm512_cvtepu8_epi32(own), 4));
            }
            _mm_store_ps(parts[passes][t], _mm_mul_ps(_mm_cvtepi32_ps(sums_of(v)), _mm_loadu_ps(s.scales[t])));
        }
        of[passes] = left;
        left = scales.left & weights;
    }
    for (index_t c = 0; c < 4 && c * kChunk < s.columns; ++c)
        for (index_t p = 0; p < passes; ++p)
            if (of[p] >> c * kChunkGroups & 0xffff)
                for (int t = 0; t < T; ++t) total[t] = std::fma(parts[p][t][c], units[p][4 * c], total[t]);
}

// total[t] += the products of one span.
template <int T>
FOURFOLD_INLINE void add_span(const Span<T>& s, const std::uint8_t* codes, __m512i table, float (&total)[T]) {
    const __m512i all = chunk_codes(codes, std::min(s.columns, kSpan) / kFp4Group);
    const Scales scales(all);
    if (scales.left) [[unlikely]] return add_wide_span<T>(s, all, total);
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
        const __m128i offset = _mm_loadu_si128(reinterpret_cast<const __m128i*>(s.chunk_offsets[t]));
        const __m128 whole = _mm_cvtepi32_ps(_mm_sub_epi32(sums_of(v[t]), offset));
        alignas(16) float part[4];
        _mm_store_ps(part, _mm_mul_ps(whole, _mm_loadu_ps(s.scales[t])));
        for (index_t c = 0; c < chunks; ++c) total[t] = std::fma(part[c], units[4 * c], total[t]);
    }
}

// What weights that are made unsigned add to the products of a row of x; memory for `chunks`, whole spans of them.
struct Offsets {
    std::int32_t *of_chunks, *of_groups;

    Offsets(const std::uint8_t* x, index_t columns, index_t chunks, std::int32_t* memory)
        : of_chunks(memory), of_groups(memory + chunks) {
        const __m512i most = _mm512_set1_epi8(kMost);
        for (index_t c = 0; c < chunks; ++c) {
            __m512i sums[1];
            add_groups(Span<1>{nullptr, columns, {x}, {}, {}, {}}, c, [&](index_t) { return Vectors{most, most}; }, sums);
            _mm512_storeu_si512(of_groups + c * kChunkGroups, sums[0]);
            of_chunks[c] = _mm512_reduce_add_epi32(sums[0]) << kDrop;
        }
    }
};

template <int T>
void few(const Matrix& m, index_t begin, index_t end, const std::uint8_t* const* x, float* const* y) {
    thread_local Scratch memory;
    const index_t chunks = round_up(InputLayout(m.columns).chunks, kSpan / kChunk), size = chunks * (1 + kChunkGroups);
    const __m512i table = value_table(kMost << kDrop);
    Span<T> first{nullptr, m.columns, {}, {}, {}, {}};
    for (int t = 0; t < T; ++t) {
        const Offsets offsets(x[t], m.columns, chunks, memory.get<std::int32_t>(T * size) + t * size);
        first.x[t] = x[t];
        first.scales[t] = reinterpret_cast<const float*>(x[t] + InputLayout(m.columns).scales());
        first.chunk_offsets[t] = offsets.of_chunks;
        first.group_offsets[t] = offsets.of_groups;
    }
    for (index_t row = begin; row < end; ++row) {
        const std::uint8_t* scale = m.scale + row * m.scales_per_row();
        Span<T> span = first;
        span.codes = m.weight + row * m.row_bytes();
        float total[T] = {};
        for (; span.columns > 0; span.move(), scale += kSpan / kFp4Group) add_span<T>(span, scale, table, total);
        for (int t = 0; t < T; ++t) y[t][row] = total[t];
    }
}

}  // namespace
}  // namespace fourfold
