// AMX: attention and index scores of bf16 queries and rows by tiles of 16 x 16 (Xeon, 2023 and later).
//
// A tile product adds a [16, 32] times b [32, 16] to a [16, 16] of floats, where b lies as 16 rows of pairs:
// word (i, j) holds elements (2i, j) and (2i + 1, j).
#include "vector_avx512.h"

namespace fourfold {
namespace {

using S = Avx512;

struct alignas(64) TileConfig {
    std::uint8_t palette = 1, start_row = 0, reserved[14] = {};
    std::uint16_t bytes_per_row[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    std::uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

// Tiles are set up while one of these lives.
struct Tiles {
    Tiles() {
        const TileConfig config;
        _tile_loadconfig(&config);
    }
    ~Tiles() { _tile_release(); }
};

// Rows of 16 words become columns.
void transpose(__m512i (&v)[16]) {
    __m512i t[16];
    for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_epi32(v[i], v[i + 1]);
        t[i + 1] = _mm512_unpackhi_epi32(v[i], v[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) {
        v[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
        v[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
        v[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
        v[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
    // Vector 4g + c has column c of every quarter of rows 4g .. 4g + 3.
    for (int c = 0; c < 4; ++c) {
        const __m512i a = _mm512_shuffle_i32x4(v[c], v[4 + c], 0x88);
        const __m512i b = _mm512_shuffle_i32x4(v[8 + c], v[12 + c], 0x88);
        const __m512i d = _mm512_shuffle_i32x4(v[c], v[4 + c], 0xdd);
        const __m512i e = _mm512_shuffle_i32x4(v[8 + c], v[12 + c], 0xdd);
        t[c] = _mm512_shuffle_i32x4(a, b, 0x88);
        t[8 + c] = _mm512_shuffle_i32x4(a, b, 0xdd);
        t[4 + c] = _mm512_shuffle_i32x4(d, e, 0x88);
        t[12 + c] = _mm512_shuffle_i32x4(d, e, 0xdd);
    }
    for (int i = 0; i < 16; ++i) v[i] = t[i];
}

// q [heads, width] -> for every 16 heads and 32 elements a tile of pairs [16, 16 heads]; absent heads are zero.
void pack_queries(const bf16* q, index_t heads, index_t columns, index_t width, std::uint32_t* packed) {
    for (index_t h = 0; h < columns; h += 16) {
        for (index_t k = 0; k < width; k += 32, packed += 256) {
            __m512i v[16];
            for (index_t i = 0; i < 16; ++i)
                v[i] = h + i < heads ? _mm512_loadu_si512(q + (h + i) * width + k) : _mm512_setzero_si512();
            transpose(v);
            for (index_t i = 0; i < 16; ++i) _mm512_storeu_si512(packed + 16 * i, v[i]);
        }
    }
}

// 16 rows that tiles can read: where they lie if that is at one distance, or a copy, absent ones zero.
struct Group {
    const bf16* first;
    index_t stride;
};
Group group_of(const bf16* const* rows, index_t count, index_t width, bf16* copy) {
    const index_t stride = count > 1 ? rows[1] - rows[0] : width;
    bool even = count >= 16;
    for (index_t i = 1; even && i < 16; ++i) even = rows[i] - rows[0] == i * stride;
    if (even) return {rows[0], stride};
    for (index_t i = 0; i < 16; ++i) {
        if (i < count)
            std::memcpy(copy + i * width, rows[i], width * sizeof(bf16));
        else
            std::memset(copy + i * width, 0, width * sizeof(bf16));
    }
    return {copy, width};
}

// scores [rows, columns] = rows . queries, 32 rows and 32 heads at a time.
void score_rows(const NarrowQuery& query, index_t columns, const std::uint32_t* packed, bf16* copies, float* scores) {
    const index_t steps = query.width / 32, next = steps * 256;
    for (index_t r = 0; r < query.count; r += 32) {
        const index_t left = query.count - r;
        const bf16* const* rows = query.rows + r;
        const Group low = group_of(rows, left, query.width, copies);
        const Group high = group_of(left > 16 ? rows + 16 : rows, left - 16, query.width, copies + 16 * query.width);
        for (index_t h = 0; h < columns; h += 32) {
            const std::uint32_t* b = packed + h / 16 * next;
            _tile_zero(0);
            _tile_zero(1);
            _tile_zero(2);
            _tile_zero(3);
            for (index_t k = 0; k < steps; ++k, b += 256) {
                _tile_loadd(4, low.first + 32 * k, low.stride * 2);
                _tile_loadd(5, high.first + 32 * k, high.stride * 2);
                _tile_loadd(6, b, 64);
                _tile_loadd(7, b + next, 64);
                _tile_dpbf16ps(0, 4, 6);
                _tile_dpbf16ps(1, 4, 7);
                _tile_dpbf16ps(2, 5, 6);
                _tile_dpbf16ps(3, 5, 7);
            }
            float* to = scores + r * columns + h;
            _tile_stored(0, to, columns * 4);
            _tile_stored(1, to + 16, columns * 4);
            _tile_stored(2, to + 16 * columns, columns * 4);
            _tile_stored(3, to + 16 * columns + 16, columns * 4);
        }
    }
}

// Two vectors of floats as words of bf16 pairs, the first in the low halves.
__m512i pairs_of(__m512 low, __m512 high) {
    const __m512i a = _mm512_srli_epi32(_mm512_castps_si512(S::to_bf16_grid(low)), 16);
    return _mm512_or_si512(a, _mm512_castps_si512(S::to_bf16_grid(high)));
}

// Columns of scores, a lane a head, become weights: for every 16 heads and 32 rows a tile [16 heads, 32].
void weigh_rows(const NarrowQuery& query, index_t columns, float* scores, std::uint32_t* weights) {
    const __m512 scale = S::broadcast(query.scale);
    const index_t rows = round_up(query.count, 32);
    for (index_t h = 0; h < columns; h += 16) {
        float* column = scores + h;
        const index_t here = query.heads - h;
        const __m512 sink = here <= 0 ? S::zero() : load<S>(query.sink + h, here);
        __m512 most = sink;
        for (index_t r = 0; r < query.count; ++r) {
            const __m512 s = S::mul(S::load(column + r * columns), scale);
            S::store(column + r * columns, s);
            most = S::max(most, s);
        }
        __m512 sum = S::zero();
        for (index_t r = 0; r < query.count; ++r) {
            const __m512 p = exponential<S>(S::sub(S::load(column + r * columns), most));
            S::store(column + r * columns, p);
            sum = S::add(sum, p);
        }
        const __m512 factor = S::div(S::broadcast(1.f), S::add(sum, exponential<S>(S::sub(sink, most))));
        for (index_t r = 0; r < rows; r += 32, weights += 256) {
            __m512i v[16];
            for (index_t i = 0; i < 16; ++i) {
                __m512 p[2];
                for (index_t j = 0; j < 2; ++j) {
                    const index_t row = r + 2 * i + j;
                    p[j] = row < query.count ? S::mul(S::load(column + row * columns), factor) : S::zero();
                }
                v[i] = pairs_of(p[0], p[1]);
            }
            transpose(v);
            for (index_t i = 0; i < 16; ++i) _mm512_storeu_si512(weights + 16 * i, v[i]);
        }
    }
}

// For every 16 elements and 32 rows a tile of pairs of rows [16, 16]; absent rows are zero.
void pack_values(const NarrowQuery& query, std::uint32_t* packed) {
    alignas(64) std::uint16_t low[32], high[32];
    for (int i = 0; i < 32; ++i) {
        low[i] = std::uint16_t(i / 2 + (i % 2 ? 32 : 0));
        high[i] = std::uint16_t(i / 2 + (i % 2 ? 48 : 16));
    }
    const __m512i first = _mm512_load_si512(low), second = _mm512_load_si512(high);
    const index_t groups = ceil_div(query.count, 32);
    const auto row = [&](index_t r, index_t c) {
        return r < query.count ? _mm512_loadu_si512(query.rows[r] + c) : _mm512_setzero_si512();
    };
    for (index_t c = 0; c < query.width; c += 32, packed += groups * 512) {
        for (index_t i = 0; i < groups * 16; ++i) {
            const __m512i a = row(2 * i, c), b = row(2 * i + 1, c);
            _mm512_storeu_si512(packed + 16 * i, _mm512_permutex2var_epi16(a, first, b));
            _mm512_storeu_si512(packed + (groups * 16 + i) * 16, _mm512_permutex2var_epi16(a, second, b));
        }
    }
}

// out [heads, width] = weights . values, 32 heads and 32 elements at a time.
void sum_values(const NarrowQuery& query, index_t columns, const std::uint32_t* weights, const std::uint32_t* values,
                float* square) {
    const index_t groups = ceil_div(query.count, 32), next = groups * 256;
    for (index_t c = 0; c < query.width; c += 32) {
        for (index_t h = 0; h < columns; h += 32) {
            const std::uint32_t *a = weights + h / 16 * next, *b = values + c / 16 * next;
            _tile_zero(0);
            _tile_zero(1);
            _tile_zero(2);
            _tile_zero(3);
            for (index_t g = 0; g < groups; ++g, a += 256, b += 256) {
                _tile_loadd(4, a, 64);
                _tile_loadd(5, a + next, 64);
                _tile_loadd(6, b, 64);
                _tile_loadd(7, b + next, 64);
                _tile_dpbf16ps(0, 4, 6);
                _tile_dpbf16ps(1, 4, 7);
                _tile_dpbf16ps(2, 5, 6);
                _tile_dpbf16ps(3, 5, 7);
            }
            const bool whole = h + 32 <= query.heads;
            float* to = whole ? query.out + h * query.width + c : square;
            const index_t stride = whole ? query.width : 32;
            _tile_stored(0, to, stride * 4);
            _tile_stored(1, to + 16, stride * 4);
            _tile_stored(2, to + 16 * stride, stride * 4);
            _tile_stored(3, to + 16 * stride + 16, stride * 4);
            if (!whole)
                for (index_t i = 0; h + i < query.heads; ++i)
                    std::memcpy(query.out + (h + i) * query.width + c, square + 32 * i, 32 * sizeof(float));
        }
    }
}

void attend_narrow(const NarrowQuery& query) {
    const index_t rows = round_up(query.count, 32), columns = round_up(query.heads, 32), width = query.width;
    float* scores = query.scratch;
    float* square = scores + rows * columns;
    auto* weights = reinterpret_cast<std::uint32_t*>(square + 1024);
    std::uint32_t* values = weights + rows * columns / 2;
    std::uint32_t* packed = values + rows * width / 2;
    auto* copies = reinterpret_cast<bf16*>(packed + columns * width / 2);
    const Tiles tiles;
    pack_queries(query.q, query.heads, columns, width, packed);
    score_rows(query, columns, packed, copies, scores);
    weigh_rows(query, columns, scores, weights);
    pack_values(query, values);
    sum_values(query, columns, weights, values, square);
}

// Sixteen keys at a time; each sums its heads in sixteen chains, head h in chain h mod 16.
void index_scores_narrow(const bf16* q, const float* head_weights, index_t heads, index_t width, Rows keys, index_t n,
                         float* scratch, float* scores) {
    const index_t columns = round_up(heads, 16), steps = width / 32;
    float *weights = scratch, *square = weights + columns;
    auto* packed = reinterpret_cast<std::uint32_t*>(square + 256);
    auto* copy = reinterpret_cast<bf16*>(packed + columns * width / 2);
    for (index_t h = 0; h < columns; ++h) weights[h] = h < heads ? head_weights[h] : 0.f;
    const Tiles tiles;
    pack_queries(q, heads, columns, width, packed);
    auto* key = static_cast<const bf16*>(keys.data);
    for (index_t i = 0; i < n; i += 16, key += 16 * keys.stride) {
        Group group{key, keys.stride};
        if (n - i < 16) {
            std::memset(copy, 0, 16 * width * sizeof(bf16));
            for (index_t r = 0; r < n - i; ++r)
                std::memcpy(copy + r * width, key + r * keys.stride, width * sizeof(bf16));
            group = {copy, width};
        }
        __m512 total[16];
        for (__m512& t : total) t = S::zero();
        const std::uint32_t* b = packed;
        for (index_t h = 0; h < columns; h += 16) {
            _tile_zero(0);
            for (index_t k = 0; k < steps; ++k, b += 256) {
                _tile_loadd(4, group.first + 32 * k, group.stride * 2);
                _tile_loadd(6, b, 64);
                _tile_dpbf16ps(0, 4, 6);
            }
            _tile_stored(0, square, 64);
            const __m512 weight = S::load(weights + h);
            for (int r = 0; r < 16; ++r)
                total[r] = S::fma(weight, S::max(S::zero(), S::load(square + 16 * r)), total[r]);
        }
        store<S>(scores + i, S::sums(total), n - i);
    }
}

VectorKernels with_tiles() {
    VectorKernels table = kAvx512Vectors;
    table.attend_narrow = attend_narrow;
    table.index_scores_narrow = index_scores_narrow;
    return table;
}

}  // namespace

const VectorKernels kAmxVectors = with_tiles();

}  // namespace fourfold
