// FP4 with inputs of 16 bits: AVX-512 VNNI for up to three tokens, AMX INT8 for more.
//
// A tile of weights is 16 rows by 64 columns of bytes, a tile of x 16 words of 4 columns by 16 tokens, once of upper and
// once of lower bytes.  A chunk's sums of both leave the tiles as whole numbers; 256 times the one plus the other, times
// the scales of both sides, joins the row's float32 sum.
#include "amx_tiles.h"
#include "int16_few.h"
#include "scratch.h"

namespace fourfold {
namespace {

constexpr index_t kSlab = 2 * kTile;            // rows worked on at once
constexpr index_t kSteps = kChunk / kVector;    // of a chunk
constexpr index_t kPart = kSlab / kSteps;       // rows decoded, and rows of sums scaled, between two steps
constexpr index_t kTileBytes = kTile * kVector;

// One pass over a slab's chunk.
struct Chunk {
    alignas(64) std::uint8_t weights[kSteps][kSlab / kTile][kTile][kVector];
    alignas(64) float units[kSlab];          // what 1 of a row's sums is worth
    alignas(64) std::uint64_t left[kSteps];  // of each part's rows, 16 bits each: groups for a further pass

    bool has_more() const {
        const __m512i all = _mm512_load_si512(left);
        return _mm512_test_epi64_mask(all, all);
    }
};

// [half of the slab][upper, lower]
struct Sums {
    alignas(64) std::int32_t of[kSlab / kTile][2][kTile][kTile];
};

using Totals = float[kSlab][kTile];

struct Slab {
    index_t row, count;
};

// One pass over a slab's chunk at column k, decoded a few rows at a time; `before`: the pass before it, if there is one.
class Decoder {
public:
    Decoder(const Matrix& m, Slab slab, index_t k, const Chunk* before, Chunk& to)
        : matrix_(m), slab_(slab), before_(before), to_(to), k_(k), columns_(std::min(kChunk, m.columns - k)),
          away_(k / 2 + 2 * kAhead <= m.row_bytes() ? kAhead : kAhead + (kSlab - 1) * m.row_bytes()) {}

    // One part, if fewer than this share of all are done.
    FOURFOLD_INLINE void decode(index_t share, index_t of, __m512i table) {
        if (done_ * of < kSteps * share) part(done_++, table);
    }
    void decode_all(__m512i table) {
        while (done_ < kSteps) part(done_++, table);
    }

private:
    static constexpr index_t kAhead = kChunk / 2;  // bytes of a row to fetch before they are wanted

    FOURFOLD_INLINE void part(index_t i, __m512i table) const {
        if (columns_ == kChunk && slab_.count == kSlab) [[likely]]
            rows<true>(i, kPart, table);
        else if (i * kPart < slab_.count)
            rows<false>(i, std::min(kPart, slab_.count - i * kPart), table);
        else
            to_.left[i] = 0;
    }

    template <bool whole>
    FOURFOLD_INLINE void rows(index_t i, index_t count, __m512i table) const {
        const index_t begin = i * kPart, first = slab_.row + begin;
        const index_t bytes = matrix_.row_bytes(), left = bytes - k_ / 2, per_row = matrix_.scales_per_row();
        const std::uint8_t* scale = matrix_.scale + first * per_row + k_ / kFp4Group;
        const auto codes = [&](index_t r) {  // rows that do not exist repeat the last one
            const std::uint8_t* p = scale + std::min(r, count - 1) * per_row;
            if (whole) return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
            return _mm512_castsi512_si128(chunk_codes(p, columns_ / kFp4Group));
        };
        const __m256i low = _mm256_set_m128i(codes(1), codes(0)), high = _mm256_set_m128i(codes(3), codes(2));
        const std::uint8_t* p = matrix_.weight + first * bytes + k_ / 2;
        const Scales scales = pass(i, count, _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1), p, left);
        alignas(64) std::uint8_t shifts[64];
        _mm512_store_si512(shifts, scales.shifts);
        const __m512i quarters = _mm512_setr_epi32(0, 4, 8, 12, 0, 4, 8, 12, 0, 4, 8, 12, 0, 4, 8, 12);
        const __m512i units = _mm512_permutexvar_epi32(quarters, scales.units);
        _mm_store_ps(to_.units + begin, _mm_castsi128_ps(_mm512_castsi512_si128(units)));
        if (before_) [[unlikely]]
            for (index_t r = 0; r < count; ++r)  // rows without this pass add 0 times -0, which changes no sum
                if (!(before_->left[i] >> r * kChunkGroups & 0xffff)) to_.units[begin + r] = -0.f;
        to_.left[i] = scales.left;
        auto& out = to_.weights;
        const index_t half = begin / kTile, lines = whole ? kChunkUnits : ceil_div(columns_, kUnit);
#pragma GCC unroll 4
        for (index_t r = 0; r < count; ++r, p += bytes)
#pragma GCC unroll 4
            for (index_t u = 0; u < lines; ++u) {
                _mm_prefetch(reinterpret_cast<const char*>(p + away_ + u * kVector), _MM_HINT_T1);
                const __m512i stored = line<whole>(p + u * kVector, left - u * kVector);
                const Vectors v = decode_unit(stored, shifts + r * kChunkGroups + 4 * u, table);
                _mm512_store_si512(out[2 * u][half][begin % kTile + r], v.even);
                _mm512_store_si512(out[2 * u + 1][half][begin % kTile + r], v.odd);
            }
    }

    // The scales of this pass over part i's rows, whose codes lie at p, `left` bytes of each.
    FOURFOLD_INLINE Scales pass(index_t i, index_t count, __m512i codes, const std::uint8_t* p, index_t left) const {
        if (before_) [[unlikely]] return Scales(codes, before_->left[i]);
        Scales scales(codes);
        if (scales.left) [[unlikely]] {
            __mmask64 weights = 0;
            for (index_t r = 0; r < count; ++r)
                weights |= groups_with_weights(p + r * matrix_.row_bytes(), left) << r * kChunkGroups;
            scales.left &= weights;
        }
        return scales;
    }

    const Matrix& matrix_;
    const Slab slab_;
    const Chunk* before_;
    Chunk& to_;
    index_t k_, columns_, away_, done_ = 0;
};

// Sums of one chunk on their way into the totals of a block of tokens.
struct Scaling {
    const Sums* sums;
    const float *scale, *units;  // of the tokens, of the rows
    float (*totals)[kTile];

    FOURFOLD_INLINE void part(index_t i) const {
        const __m512 scales = _mm512_load_ps(scale);
#pragma GCC unroll 4
        for (index_t r = i * kPart; r < (i + 1) * kPart; ++r) {
            const auto& both = sums->of[r / kTile];
            const __m512i upper = _mm512_load_si512(both[0][r % kTile]), lower = _mm512_load_si512(both[1][r % kTile]);
            const __m512 whole = _mm512_cvtepi32_ps(_mm512_add_epi32(_mm512_slli_epi32(upper, 8), lower));
            const __m512 part = _mm512_mul_ps(whole, scales), unit = _mm512_set1_ps(units[r]);
            _mm512_store_ps(totals[r], _mm512_fmadd_ps(part, unit, _mm512_load_ps(totals[r])));
        }
    }
};

// Tiles 0-3 are sums (half of the slab, upper or lower), 4-5 weights, 6-7 x.
FOURFOLD_INLINE void step(const std::uint8_t (&weights)[kSlab / kTile][kTile][kVector], const std::uint8_t* x) {
    memory_is_written();
    _tile_loadd(4, weights[0], kVector);
    _tile_loadd(6, x, kVector);
    _tile_dpbssd(0, 4, 6);
    _tile_loadd(5, weights[1], kVector);
    _tile_dpbssd(2, 5, 6);
    _tile_loadd(7, x + kTileBytes, kVector);
    _tile_dpbssd(1, 4, 7);
    _tile_dpbssd(3, 5, 7);
}

// A chunk of the slab times one block of tokens, between whose steps something else is done.
template <class Between>
FOURFOLD_INLINE void multiply_block(const Chunk& chunk, index_t steps, const std::uint8_t* x, Sums& sums,
                                    Between&& between) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
#pragma GCC unroll 8
    for (index_t i = 0; i < kSteps; ++i) {
        if (i < steps) step(chunk.weights[i], x + i * 2 * kTileBytes);
        between(i);
    }
    _tile_stored(0, sums.of[0][0], kVector);
    _tile_stored(1, sums.of[0][1], kVector);
    _tile_stored(2, sums.of[1][0], kVector);
    _tile_stored(3, sums.of[1][1], kVector);
    memory_is_written();
}

void configure() {
    TileConfig c;
    for (int tile = 0; tile < 8; ++tile) c.row_bytes[tile] = kVector, c.rows[tile] = kTile;
    memory_is_written();
    _tile_loadconfig(&c);
}

// A chunk's pass is decoded one ahead of its use, between the steps of the first block that meets the one before it.
void many(const Matrix& m, index_t begin, index_t end, const std::uint8_t* const* x, float* const* y, index_t n) {
    struct Work {
        Chunk chunks[2];
        Sums sums[2];
    };
    static thread_local Work* work = new Work;
    thread_local Scratch memory;
    const InputLayout layout(m.columns);
    const index_t blocks = ceil_div(n, kTile);
    auto* totals = reinterpret_cast<Totals*>(memory.get<float>(blocks * kSlab * kTile));
    const __m512i table = value_table(0);
    configure();
    const auto slab = [&](index_t row) { return Slab{row, std::min(kSlab, end - row)}; };
    Decoder(m, slab(begin), 0, nullptr, work->chunks[0]).decode_all(table);
    index_t ready = 0;
    for (index_t row = begin; row < end; row += kSlab) {
        std::memset(totals, 0, blocks * sizeof(Totals));
        Scaling last{};
        index_t at = 0;  // of the sums
        for (index_t k = 0, next; k < m.columns; k = next, ready ^= 1) {
            const Chunk& now = work->chunks[ready];
            const bool again = now.has_more();
            next = again ? k : k + kChunk;
            const bool more = next < m.columns, below = row + kSlab < end;
            Decoder ahead(m, slab(more ? row : row + kSlab), more ? next : 0, again ? &now : nullptr,
                          work->chunks[ready ^ 1]);
            const index_t steps = 2 * ceil_div(std::min(kChunk, m.columns - k), kUnit);
            for (index_t b = 0; b < blocks; ++b, at ^= 1) {
                const auto between = [&](index_t i) __attribute__((always_inline)) {
                    if (last.sums) last.part(i);
                    if (more || below) ahead.decode(b + 1, blocks, table);
                };
                multiply_block(now, steps, x[b] + k / kUnit * InputLayout::unit * kTile, work->sums[at], between);
                const auto* scales = reinterpret_cast<const float*>(x[b] + layout.scales() * kTile);
                last = {&work->sums[at], scales + k / kChunk * kTile, now.units, totals[b]};
            }
        }
        for (index_t i = 0; i < kSteps; ++i) last.part(i);
        const index_t count = slab(row).count;
        for (index_t b = 0; b < blocks; ++b) {
            const index_t tokens = std::min(kTile, n - b * kTile);
            for (index_t half = 0; half < kSlab; half += kTile)
                scatter(totals[b][half], kTile, tokens, row + half, std::clamp<index_t>(count - half, 0, kTile), y + b * kTile);
        }
    }
    // Leave no tiles behind: their state would be saved at every switch of tasks.
    _tile_release();
}

index_t packed_bytes(index_t columns) { return InputLayout(columns).bytes(); }

void multiply(const Matrix& m, index_t begin, index_t end, const std::uint8_t* const* x, float* const* y, index_t n) {
    if (n > Int16Products::few) {
        const index_t group = group_of(n, packed_bytes(m.columns), kTile);
        for (index_t first = 0; first < n; first += group)
            many(m, begin, end, x + first / kTile, y + first, std::min(group, n - first));
    }
    if (n == 1) few<1>(m, begin, end, x, y);
    if (n == 2) few<2>(m, begin, end, x, y);
    if (n == 3) few<3>(m, begin, end, x, y);
}

void interleave(const std::uint8_t* const* rows, index_t count, index_t width, index_t columns, std::uint8_t* block) {
    interleave_words(rows, count, width, packed_bytes(columns), block);
}

}  // namespace

const Int16Products kAmxInt16 = {packed_bytes, pack_int16, interleave, multiply};

}  // namespace fourfold
