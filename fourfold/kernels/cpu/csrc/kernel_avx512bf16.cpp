// AVX-512 BF16: AMD Zen 4 and later, and other processors without matrix units.
//
// One instruction adds the products of 32 columns to 16 sums.  A dot product is a chain of those over the row's
// columns, then a tree over its 16 sums, whichever function below computes it: its bits do not depend on how many
// tokens or rows there are.
#include <algorithm>
#include <utility>

#include "bf16_decode.h"
#include "scratch.h"
#include "vector_avx512.h"

namespace fourfold {
namespace {

constexpr int kTile = 4;         // tokens that meet a weight at once
constexpr int kPanel = 4;        // rows decoded ahead that meet them at once
constexpr int kSums = 16;        // rows times tokens in registers, a vector of sums each
constexpr index_t kSpan = 512;   // columns whose scales are looked at together
constexpr index_t kSlabBytes = 256 * 1024;  // decoded weights that stay in the second-level cache

// f(0), f(1), ... f(n - 1), written out: their registers must be constants.
template <int n, class F>
FOURFOLD_INLINE void each(F&& f) {
    [&]<int... i>(std::integer_sequence<int, i...>) __attribute__((always_inline)) {
        (f(std::integral_constant<int, i>()), ...);
    }(std::make_integer_sequence<int, n>());
}

// R rows of a matrix on their way through the columns, from which each unit is decoded.  Rows beyond `end` stand for
// the last one: nobody looks at their sums.
template <Format format, int R>
class Rows {
public:
    Rows(const Matrix& m, index_t row, index_t end) : matrix_(m), bytes_(m.row_bytes()) {
        for (int r = 0; r < R; ++r) index_[r] = std::min(row + r, end - 1);
        for (int r = 0; r < R; ++r) weight_[r] = m.weight + index_[r] * bytes_;
    }

    // unit(k, whether all of its columns exist) for every unit.
    template <class Unit>
    FOURFOLD_INLINE void for_units(Unit&& unit) {
        for (index_t span = 0; span < matrix_.columns; span += kSpan) {
            const index_t end = std::min(span + kSpan, matrix_.columns);
            if constexpr (format == Format::Fp4) read_fp4_scales(span);
            index_t k = span;
            for (; k + kUnit <= end; k += kUnit) unit(k, std::true_type());
            if (k < end) unit(k, std::false_type());
        }
    }

    // The unit at column k is next.
    FOURFOLD_INLINE void move_to(index_t k) {
        if constexpr (format == Format::Fp4) spread_ = fp4_spread(k);
        if constexpr (format == Format::Fp8) {
            const int e = matrix_.scale[index_[0] / kFp8Block * matrix_.scales_per_row() + k / kFp8Block];
            extreme_ |= e < kLeastScale || e > kMostScale;
            bias_ = _mm512_set1_epi16(short((e - 7) * 128));
            subnormals_ = subnormal_table(e);
        }
        ahead_ = offset(k) + kAhead < bytes_ ? kAhead : kAhead + (R - 1) * bytes_;
    }

    // Row r's unit at column k; `whole`: all of its columns exist.
    template <bool whole>
    FOURFOLD_INLINE void decode(int r, index_t k, __m512i (&w)[kUnitSteps]) {
        if constexpr (format == Format::Fp4) decode_fp4<whole>(r, k, w);
        if constexpr (format == Format::Fp8) decode_fp8<whole>(r, k, w);
        if constexpr (format == Format::Bf16)
            for (index_t i = 0; i < kUnitSteps; ++i) w[i] = load<whole>(r, offset(k + i * kStep));
    }

    // May one of the rows be odd?
    bool suspicious() const {
        if constexpr (format == Format::Fp4)
            return _mm_cmplt_epu8_mask(least_, _mm_set1_epi8(kLeastScale)) |
                   _mm_cmpgt_epu8_mask(most_, _mm_set1_epi8(char(kMostScale)));
        if constexpr (format == Format::Fp8)
            return extreme_ || _mm512_cmpeq_epi8_mask(largest_, _mm512_set1_epi8(0x7f));
        return false;
    }

private:
    static constexpr index_t kAhead = 1024;  // bytes of a row to fetch before they are wanted

    // Where column k begins in its row.
    static index_t offset(index_t k) { return format == Format::Fp4 ? k / 2 : format == Format::Fp8 ? k : 2 * k; }

    // 64 bytes of a row, zeros beyond its end.
    template <bool whole>
    FOURFOLD_INLINE __m512i load(int r, index_t at) const {
        const std::uint8_t* p = weight_[r] + at;
        _mm_prefetch(reinterpret_cast<const char*>(p + ahead_), _MM_HINT_T0);
        return line<whole>(p, bytes_ - at);
    }

    void read_fp4_scales(index_t k) {
        constexpr index_t most = kSpan / kFp4Group;
        const index_t groups = std::min(most, (matrix_.columns - k) / kFp4Group);
        const __mmask16 inside = __mmask16((1u << groups) - 1);
        const __m128i middle = _mm_set1_epi8(127);
        for (int r = 0; r < R; ++r) {
            const std::uint8_t* p = matrix_.scale + index_[r] * matrix_.scales_per_row() + k / kFp4Group;
            const __m128i e = _mm_mask_loadu_epi8(middle, inside, p);
            least_ = _mm_min_epu8(least_, e);
            most_ = _mm_max_epu8(most_, e);
            _mm256_store_si256(reinterpret_cast<__m256i*>(fp4_bias_[r]), fp4_biases(e));
        }
    }

    template <bool whole>
    FOURFOLD_INLINE void decode_fp4(int r, index_t k, __m512i (&w)[kUnitSteps]) {
        const __m512i words = load<whole>(r, offset(k)), table = fp4_table();
        const auto* scales = reinterpret_cast<const __m128i*>(&fp4_bias_[r][k % kSpan / (2 * kUnit) * 8]);
        const __m512i bias = _mm512_shuffle_epi8(_mm512_broadcast_i32x4(_mm_load_si128(scales)), spread_);
        const auto value = [&](__m512i codes) {
            return _mm512_subs_epu16(_mm512_permutexvar_epi16(codes, table), bias);
        };
        w[0] = value(words);
        w[1] = value(_mm512_srli_epi16(words, 4));
        w[2] = value(_mm512_srli_epi16(words, 8));
        w[3] = value(_mm512_srli_epi16(words, 12));
    }

    template <bool whole>
    FOURFOLD_INLINE void decode_fp8(int r, index_t k, __m512i (&w)[kUnitSteps]) {
        for (index_t half = 0; half < 2; ++half) {
            const __m512i codes = load<whole>(r, offset(k) + 64 * half), lower = _mm512_slli_epi16(codes, 8);
            largest_ = _mm512_max_epu8(largest_, _mm512_and_si512(codes, _mm512_set1_epi8(0x7f)));
            if (_mm512_testn_epi8_mask(codes, _mm512_set1_epi8(0x78))) [[unlikely]] {  // one weight in thousands
                w[2 * half] = fp8_small_values(lower, bias_, subnormals_);
                w[2 * half + 1] = fp8_small_values(codes, bias_, subnormals_);
            } else {
                w[2 * half] = fp8_values(lower, bias_);
                w[2 * half + 1] = fp8_values(codes, bias_);
            }
        }
    }

    const Matrix& matrix_;
    index_t bytes_, ahead_ = 0, index_[R];
    const std::uint8_t* weight_[R];
    __m512i spread_, bias_, subnormals_;
    __m512i largest_ = _mm512_setzero_si512();
    __m128i least_ = _mm_set1_epi8(127), most_ = _mm_set1_epi8(127);
    bool extreme_ = false;
    alignas(32) std::uint16_t fp4_bias_[R][kSpan / kFp4Group];
};

FOURFOLD_INLINE __m512i load(const bf16_t* p) { return _mm512_loadu_si512(p); }

FOURFOLD_INLINE void add_products(__m512& sum, __m512i w, __m512i x) {
    sum = _mm512_dpbf16_ps(sum, (__m512bh)w, (__m512bh)x);
}

// Up to four rows of x side by side, [step][tokens][32 columns].
struct Tile {
    const bf16_t* x;
    index_t tokens;   // that lie there
    index_t present;  // that are wanted
    float* const* y;
};

// Tile t of n rows of x in their blocks.
Tile tile_of(const bf16_t* const* blocks, index_t n, index_t t, index_t width, float* const* y) {
    const index_t first = t * kTile, block = first / Bf16Products::most, at = first % Bf16Products::most;
    const index_t tokens = std::min<index_t>(kTile, Bf16Products::block_width(n, block) - at);
    return {blocks[block] + at * width, tokens, std::min<index_t>(tokens, n - first), y + first};
}

// sums [T][R] -> y for the rows and tokens that exist.
template <int R, int T>
void store(const __m512 (&sum)[kSums], const Tile& tile, index_t row, index_t end) {
    float all[kSums];
    _mm512_storeu_ps(all, Avx512::sums(sum));
    const index_t count = std::min<index_t>(R, end - row);
    for (index_t t = 0; t < std::min<index_t>(T, tile.present); ++t)
        std::memcpy(tile.y[t] + row, all + t * R, count * sizeof(float));
}

// Few tokens: weights are decoded in registers.  True: one of the rows may be odd.
template <Format format, int R, int T>
bool multiply_stored(const Matrix& m, index_t row, index_t end, const Tile& tile) {
    Rows<format, R> rows(m, row, end);
    __m512 sum[kSums];
    each<kSums>([&](auto i) __attribute__((always_inline)) { sum[i] = _mm512_setzero_ps(); });
    const bf16_t* x = tile.x;
    rows.for_units([&]<bool whole>(index_t k, std::bool_constant<whole>) __attribute__((always_inline)) {
        rows.move_to(k);
        each<R>([&](auto r) __attribute__((always_inline)) {
            __m512i w[kUnitSteps];
            rows.template decode<whole>(r, k, w);
            each<kUnitSteps>([&](auto i) __attribute__((always_inline)) {
                each<T>([&](auto t) __attribute__((always_inline)) {
                    add_products(sum[t * R + r], w[i], load(x + (i * T + t) * kStep));
                });
            });
        });
        x += kUnit * T;
    });
    store<R, T>(sum, tile, row, end);
    return rows.suspicious();
}

// A panel of rows as bfloat16, [step][row][32 columns].  True: one of them may be odd.
template <Format format>
bool decode_panel(const Matrix& m, index_t row, index_t end, bf16_t* panel) {
    Rows<format, kPanel> rows(m, row, end);
    rows.for_units([&]<bool whole>(index_t k, std::bool_constant<whole>) __attribute__((always_inline)) {
        rows.move_to(k);
        each<kPanel>([&](auto r) __attribute__((always_inline)) {
            __m512i w[kUnitSteps];
            rows.template decode<whole>(r, k, w);
            for (index_t i = 0; i < kUnitSteps; ++i)
                _mm512_storeu_si512(panel + ((k / kStep + i) * kPanel + r) * kStep, w[i]);
        });
    });
    return rows.suspicious();
}

template <int T>
void multiply_panel(const bf16_t* panel, index_t steps, const Tile& tile, index_t row, index_t end) {
    __m512 sum[kSums];
    each<kSums>([&](auto i) __attribute__((always_inline)) { sum[i] = _mm512_setzero_ps(); });
    const bf16_t* x = tile.x;
    for (index_t i = 0; i < steps; ++i, panel += kPanel * kStep, x += T * kStep) {
        __m512i w[kPanel];
        each<kPanel>([&](auto r) __attribute__((always_inline)) { w[r] = load(panel + r * kStep); });
        each<T>([&](auto t) __attribute__((always_inline)) {
            const __m512i v = load(x + t * kStep);
            each<kPanel>([&](auto r) __attribute__((always_inline)) { add_products(sum[t * kPanel + r], w[r], v); });
        });
    }
    store<kPanel, T>(sum, tile, row, end);
}

bool is_odd(const Matrix& m, index_t row) {
    const index_t scales = m.scales_per_row();
    const std::uint8_t* scale = m.scale + (m.format == Format::Fp8 ? row / kFp8Block : row) * scales;
    const std::uint8_t* code = m.weight + row * m.row_bytes();
    return std::any_of(scale, scale + scales, [](int e) { return e < kLeastScale || e > kMostScale; }) ||
           (m.format == Format::Fp8 && std::any_of(code, code + m.columns, [](int c) { return (c & 127) == 127; }));
}

void odd_rows(const Matrix& m, index_t row, index_t end, const Tile& tile) {
    for (; row < end; ++row) {
        if (!is_odd(m, row)) continue;
        for (index_t t = 0; t < tile.present; ++t)
            tile.y[t][row] = odd_product(m, row, [&](index_t at) {
                return tile.x[(at / kStep * tile.tokens + t) * kStep + at % kStep];
            });
    }
}

template <Format format, int R, int T>
void few(const Matrix& m, index_t begin, index_t end, const Tile& tile) {
    for (index_t row = begin; row < end; row += R)
        if (multiply_stored<format, R, T>(m, row, end, tile)) [[unlikely]]
            odd_rows(m, row, std::min(row + R, end), tile);
}

// A slab is decoded into the second-level cache, then meets one tile of tokens after the other.
template <Format format>
void many(const Matrix& m, index_t begin, index_t end, const bf16_t* const* blocks, float* const* y, index_t n) {
    thread_local Scratch memory;
    const index_t width = Bf16Products::width(m.columns), steps = width / kStep;
    const index_t rows = std::clamp<index_t>(kSlabBytes / (2 * width) / kPanel * kPanel, kPanel, 64);
    bf16_t* slab = memory.get<bf16_t>(rows * width);
    for (index_t first = begin; first < end; first += rows) {
        const index_t last = std::min(first + rows, end);
        bool suspicious = false;
        for (index_t row = first; row < last; row += kPanel)
            suspicious |= decode_panel<format>(m, row, last, slab + (row - first) * width);
        for (index_t t = 0; t * kTile < n; ++t) {
            const Tile tile = tile_of(blocks, n, t, width, y);
            for (index_t row = first; row < last; row += kPanel) {
                const bf16_t* panel = slab + (row - first) * width;
                if (tile.tokens == 4) multiply_panel<4>(panel, steps, tile, row, last);
                if (tile.tokens == 3) multiply_panel<3>(panel, steps, tile, row, last);
                if (tile.tokens == 2) multiply_panel<2>(panel, steps, tile, row, last);
                if (tile.tokens == 1) multiply_panel<1>(panel, steps, tile, row, last);
            }
            if (suspicious) [[unlikely]] odd_rows(m, first, last, tile);
        }
    }
}

template <Format format>
void multiply_format(const Matrix& m, index_t begin, index_t end, const bf16_t* const* blocks, float* const* y,
                     index_t n) {
    if (n > kTile) return many<format>(m, begin, end, blocks, y, n);
    const Tile tile = {blocks[0], n, n, y};
    if (n == 4) few<format, 4, 4>(m, begin, end, tile);
    if (n == 3) few<format, 4, 3>(m, begin, end, tile);
    if (n == 2) few<format, 8, 2>(m, begin, end, tile);
    if (n == 1) few<format, 16, 1>(m, begin, end, tile);
}

void multiply(const Matrix& m, index_t begin, index_t end, const bf16_t* const* blocks, float* const* y, index_t n) {
    if (m.format == Format::Fp4) multiply_format<Format::Fp4>(m, begin, end, blocks, y, n);
    if (m.format == Format::Fp8) multiply_format<Format::Fp8>(m, begin, end, blocks, y, n);
    if (m.format == Format::Bf16) multiply_format<Format::Bf16>(m, begin, end, blocks, y, n);
}

// The block's rows by tiles of up to four, each [step][token][32 columns].
void interleave(const bf16_t* const* rows, index_t count, index_t block_width, index_t columns, bf16_t* block) {
    const index_t width = Bf16Products::width(columns);
    for (index_t first = 0; first < block_width; first += kTile) {
        const index_t tokens = std::min<index_t>(kTile, block_width - first);
        for (index_t k = 0; k < width; k += kStep)
            for (index_t t = first; t < first + tokens; ++t, block += kStep)
                _mm512_storeu_si512(block, t < count ? load(rows[t] + k) : _mm512_setzero_si512());
    }
}

}  // namespace

const Bf16Products kAvx512Bf16Products = {arrange, interleave, multiply};

}  // namespace fourfold
