// What products in AMX tiles share.  Included by files with their own flags, hence the unnamed namespace.
#pragma once

#include <immintrin.h>

#include <algorithm>

#include "kernel.h"

namespace fourfold {
namespace {

constexpr index_t kTile = 16;  // rows, words of 32 bits, tokens

// How many of n tokens are worked on at once: as many as leave their inputs, of `bytes` each, in the second-level cache
// while the matrix passes by, in even parts; a multiple of `step`.
inline index_t group_of(index_t n, index_t bytes, index_t step) {
    constexpr index_t cache = 3 << 19;
    const index_t most = std::max(cache / bytes / step, index_t{2}) * step;
    return round_up(ceil_div(n, ceil_div(n, most)), step);
}

// The tile instructions do not tell the compiler what memory they read.
FOURFOLD_INLINE void memory_is_written() { __asm__ volatile("" ::: "memory"); }

struct alignas(64) TileConfig {
    std::uint8_t palette = 1, start_row = 0, reserved[14] = {};
    std::uint16_t row_bytes[16] = {};
    std::uint8_t rows[16] = {};
};

// 16 rows of 16 words of 32 bits, turned: out[j] has word j of every row.
void transpose(const __m512i (&in)[16], __m512i (&out)[16]) {
    __m512i a[16], b[16];
    for (int i = 0; i < 16; i += 2) {
        a[i] = _mm512_unpacklo_epi32(in[i], in[i + 1]);
        a[i + 1] = _mm512_unpackhi_epi32(in[i], in[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) {
        b[i] = _mm512_unpacklo_epi64(a[i], a[i + 2]);
        b[i + 1] = _mm512_unpackhi_epi64(a[i], a[i + 2]);
        b[i + 2] = _mm512_unpacklo_epi64(a[i + 1], a[i + 3]);
        b[i + 3] = _mm512_unpackhi_epi64(a[i + 1], a[i + 3]);
    }
    // b[4i + j]: words j, j + 4, j + 8, j + 12 of rows 4i .. 4i + 3, a quarter each.
    for (int j = 0; j < 4; ++j) {
        const __m512i low = _mm512_shuffle_i32x4(b[j], b[4 + j], 0x88), high = _mm512_shuffle_i32x4(b[8 + j], b[12 + j], 0x88);
        const __m512i low2 = _mm512_shuffle_i32x4(b[j], b[4 + j], 0xdd), high2 = _mm512_shuffle_i32x4(b[8 + j], b[12 + j], 0xdd);
        out[j] = _mm512_shuffle_i32x4(low, high, 0x88);
        out[8 + j] = _mm512_shuffle_i32x4(low, high, 0xdd);
        out[4 + j] = _mm512_shuffle_i32x4(low2, high2, 0x88);
        out[12 + j] = _mm512_shuffle_i32x4(low2, high2, 0xdd);
    }
}

// sums [16 rows][width] -> y[token][row] for the tokens and rows that exist.
void scatter(const float* sums, index_t width, index_t tokens, index_t row, index_t count, float* const* y) {
    if (width == kTile && tokens > 1) {
        const __mmask16 inside = __mmask16((1u << count) - 1);
        __m512i in[kTile], out[kTile];
        for (index_t r = 0; r < kTile; ++r) in[r] = _mm512_loadu_si512(sums + r * kTile);
        transpose(in, out);
        for (index_t t = 0; t < tokens; ++t) _mm512_mask_storeu_epi32(y[t] + row, inside, out[t]);
        return;
    }
    for (index_t t = 0; t < tokens; ++t)
        for (index_t r = 0; r < count; ++r) y[t][row + r] = sums[r * width + t];
}

// rows [count][length] -> [word of 32 bits][width], zeros beyond count.
template <class T>
void interleave_words(const T* const* rows, index_t count, index_t width, index_t length, T* block) {
    constexpr index_t line = 64 / sizeof(T), word = 4 / sizeof(T);
    for (index_t k = 0; k < length; k += line) {
        __m512i in[16], out[16];
        for (index_t t = 0; t < kTile; ++t) in[t] = t < count ? _mm512_loadu_si512(rows[t] + k) : _mm512_setzero_si512();
        transpose(in, out);
        const __mmask16 inside = __mmask16((1u << width) - 1);
        for (index_t p = 0; p < kTile; ++p) _mm512_mask_storeu_epi32(block + (k + p * word) * width, inside, out[p]);
    }
}

}  // namespace
}  // namespace fourfold
