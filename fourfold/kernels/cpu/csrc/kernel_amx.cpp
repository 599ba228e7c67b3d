// Intel AMX, with AVX-512 to decode weights into its tiles.
//
// A tile of weights is 16 rows of the matrix by 32 columns in bfloat16, decoded from the checkpoint's layout
// (amx_decode.h).  A tile of x is 16 pairs of columns by up to 16 tokens.  One step adds the products of 32 columns to
// 16 x tokens sums, each token's column of sums by itself: its bits do not depend on how many tokens share the tile.
#include <algorithm>

#include "amx_decode.h"

namespace fourfold {
namespace {

constexpr index_t kFew = 2 * kTile;  // tokens whose sums all fit into the tiles

// Tokens in the two blocks that are worked on at once.
struct Widths {
    index_t left, right;
};

// Tiles 0-3 are sums (slab half x block of tokens), 4-5 weights, 6-7 x.
void configure(const Widths& w) {
    TileConfig c;
    const auto set = [&](int tile, index_t bytes) { c.row_bytes[tile] = bytes, c.rows[tile] = kTile; };
    set(0, 4 * w.left), set(1, 4 * w.left), set(2, 4 * w.right), set(3, 4 * w.right);
    set(4, 64), set(5, 64);
    set(6, 4 * w.left), set(7, 4 * w.right);
    memory_is_written();
    _tile_loadconfig(&c);
}

// Tile numbers must be constants: one step of 32 columns for one or two blocks of tokens.
template <int blocks>
FOURFOLD_INLINE void step(const bf16_t (&weights)[kSlab / kTile][kTile][kStep], const bf16_t* const* x,
                          const Widths& widths, index_t k) {
    memory_is_written();
    _tile_loadd(4, weights[0], 64);
    _tile_loadd(5, weights[1], 64);
    _tile_loadd(6, x[0] + k * widths.left, 4 * widths.left);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 5, 6);
    if constexpr (blocks == 2) {
        _tile_loadd(7, x[1] + k * widths.right, 4 * widths.right);
        _tile_dpbf16ps(2, 4, 7);
        _tile_dpbf16ps(3, 5, 7);
    }
}

using Sums = float[4][kTile * kTile];

template <int blocks>
FOURFOLD_INLINE void zero_sums() {
    _tile_zero(0);
    _tile_zero(1);
    if constexpr (blocks == 2) {
        _tile_zero(2);
        _tile_zero(3);
    }
}

template <int blocks>
FOURFOLD_INLINE void load_sums(const Sums& sums, const Widths& widths) {
    memory_is_written();
    _tile_loadd(0, sums[0], 4 * widths.left);
    _tile_loadd(1, sums[1], 4 * widths.left);
    if constexpr (blocks == 2) {
        _tile_loadd(2, sums[2], 4 * widths.right);
        _tile_loadd(3, sums[3], 4 * widths.right);
    }
}

template <int blocks>
FOURFOLD_INLINE void store_sums(Sums& sums, const Widths& widths) {
    _tile_stored(0, sums[0], 4 * widths.left);
    _tile_stored(1, sums[1], 4 * widths.left);
    if constexpr (blocks == 2) {
        _tile_stored(2, sums[2], 4 * widths.right);
        _tile_stored(3, sums[3], 4 * widths.right);
    }
}

// The slab's sums for the tokens of two blocks.
void scatter_pair(const Slab& s, const Sums& sums, const Widths& widths, index_t tokens, float* const* y) {
    for (int half = 0; half < 2; ++half) {
        const index_t count = std::clamp<index_t>(s.count - half * kTile, 0, kTile), row = s.row + half * kTile;
        scatter(sums[half], widths.left, std::min(tokens, kTile), row, count, y);
        scatter(sums[2 + half], widths.right, std::max<index_t>(tokens - kTile, 0), row, count, y + kTile);
    }
}

// Few tokens: the sums never leave their tiles.  A unit is decoded one ahead of its use, because a tile cannot be
// loaded before the stores to its memory have left the store buffer; a quarter of it at a time, so that decoding goes
// on while the last step's sums are under way.  `ready` is the first unit of this slab; in the end it is that of the
// next one, if there is one.
template <class Unit, int blocks>
FOURFOLD_INLINE void few(Slab& s, Slab* next, Tiles (&tiles)[2], index_t& ready, const bf16_t* const* x,
                         const Widths& widths, index_t n, float* const* y) {
    const index_t columns = s.matrix.columns;
    zero_sums<blocks>();
    for (index_t k = 0; k < columns; k += kUnit, ready ^= 1) {
        const Tiles& now = tiles[ready];
        Slab* ahead = k + kUnit < columns ? &s : next;
        if (ahead) {
            const Unit unit(*ahead, ahead == &s ? k + kUnit : 0);
#pragma GCC unroll 4
            for (index_t i = 0; i < kUnitSteps; ++i) {
                decode_quarter(*ahead, unit, i, tiles[ready ^ 1]);
                step<blocks>(now[i], x, widths, k + i * kStep);
            }
        } else {
            for (index_t i = 0; i < kUnitSteps; ++i) step<blocks>(now[i], x, widths, k + i * kStep);
        }
    }
    alignas(64) Sums sums;
    store_sums<blocks>(sums, widths);
    scatter_pair(s, sums, widths, n, y);
}

template <class Unit>
void decode_unit(Slab& s, index_t k, Tiles& tiles) {
    const Unit unit(s, k);
    for (index_t i = 0; i < kUnitSteps; ++i) decode_quarter(s, unit, i, tiles);
}

// Many tokens: a slab's next 256 columns are decoded into the first-level cache, then meet all blocks of tokens; between
// the steps the columns behind them are decoded.
constexpr index_t kDepth = 256, kDepthUnits = kDepth / kUnit;
constexpr index_t kMostPairs = 32;  // of blocks of tokens
using Deep = Tiles[kDepthUnits];
struct Work {
    alignas(64) Deep tiles[2];
    alignas(64) Sums sums[kMostPairs];
};

// Units of a slab from column k on, decoded a quarter at a time.
template <class Unit>
class Ahead {
public:
    Ahead(Slab& s, index_t k, Deep& to)
        : slab_(s), units_{Unit(s, k), Unit(s, std::min(k + kUnit, (s.matrix.columns - 1) / kUnit * kUnit))}, to_(to),
          quarters_(std::min(kDepthUnits, ceil_div(s.matrix.columns - k, kUnit)) * kUnitSteps) {}

    // One quarter, if fewer than this share of all are done.
    FOURFOLD_INLINE void decode(index_t part, index_t of) {
        if (done_ * of >= quarters_ * part) return;
        const index_t unit = done_ / kUnitSteps;
        decode_quarter(slab_, units_[unit], done_ % kUnitSteps, to_[unit]);
        ++done_;
    }
    void decode_all() {
        while (done_ < quarters_) decode(1, 1);
    }

private:
    Slab& slab_;
    const Unit units_[kDepthUnits];
    Deep& to_;
    index_t quarters_, done_ = 0;
};

template <int blocks, class Between>
FOURFOLD_INLINE void deep(const Deep& tiles, index_t steps, const bf16_t* const* x, index_t k, Sums& sums,
                          Between&& between) {
    constexpr Widths full{kTile, kTile};
    if (k)
        load_sums<blocks>(sums, full);
    else
        zero_sums<blocks>();
    for (index_t i = 0; i < steps; ++i) {
        step<blocks>(tiles[i / kUnitSteps][i % kUnitSteps], x, full, k + i * kStep);
        between();
    }
    store_sums<blocks>(sums, full);
}

// Rows that the tiles cannot represent, one product after the other in float32.
void odd_rows(const Slab& s, const bf16_t* const* x, const Widths& widths, index_t n, float* const* y) {
    if (!s.any_odd) return;
    for (index_t r = 0; r < s.count; ++r) {
        if (!s.odd[r]) continue;
        for (index_t t = 0; t < n; ++t) {
            const index_t width = t / kTile % 2 ? widths.right : widths.left;
            y[t][s.row + r] = odd_product(s.matrix, s.row + r, [&](index_t at) {
                return x[t / kTile][(at / 2 * width + t % kTile) * 2 + at % 2];
            });
        }
    }
}

template <class Unit, int blocks>
void slabs_of_few(const Matrix& m, index_t begin, index_t end, const bf16_t* const* x, float* const* y, index_t n) {
    const Widths widths = {std::min(n, kTile), blocks == 2 ? n - kTile : kTile};
    configure(widths);
    alignas(64) Tiles tiles[2];
    index_t ready = 0;
    Slab slabs[2] = {{m, begin, end}, {m, begin, end}};
    decode_unit<Unit>(slabs[0], 0, tiles[0]);
    for (index_t row = begin, turn = 0; row < end; row += kSlab, turn ^= 1) {
        Slab* next = nullptr;
        if (row + kSlab < end) {
            next = &slabs[turn ^ 1];
            next->move_to(row + kSlab);
        }
        few<Unit, blocks>(slabs[turn], next, tiles, ready, x, widths, n, y);
        odd_rows(slabs[turn], x, widths, n, y);
    }
}

// The slab's columns from k on times all blocks; `ahead`: what is decoded meanwhile, if anything.
template <class Unit>
void meet_all(const Slab& s, index_t k, const Deep& tiles, const bf16_t* const* x, index_t blocks, Sums* sums,
              Ahead<Unit>* ahead) {
    const index_t pairs = ceil_div(blocks, 2);
    const index_t steps = ceil_div(std::min(kDepth, s.matrix.columns - k), kUnit) * kUnitSteps;
    for (index_t p = 0; p < pairs; ++p) {
        const auto between = [&]() __attribute__((always_inline)) {
            if (ahead) ahead->decode(p + 1, pairs);
        };
        if (2 * p + 1 < blocks)
            deep<2>(tiles, steps, x + 2 * p, k, sums[p], between);
        else
            deep<1>(tiles, steps, x + 2 * p, k, sums[p], between);
    }
    if (ahead) ahead->decode_all();
}

template <class Unit>
void slabs_of_many(const Matrix& m, index_t begin, index_t end, const bf16_t* const* x, float* const* y, index_t n) {
    static thread_local Work* work = new Work;
    configure({kTile, kTile});
    const index_t group = std::min(group_of(n, 2 * Bf16Products::width(m.columns), kSlab), kMostPairs * kSlab);
    for (index_t first = 0; first < n; first += group) {
        const index_t count = std::min(group, n - first), blocks = ceil_div(count, kTile);
        const bf16_t* const* at = x + first / kTile;
        Slab slabs[2] = {{m, begin, end}, {m, begin, end}};
        Ahead<Unit>(slabs[0], 0, work->tiles[0]).decode_all();
        index_t ready = 0, turn = 0;
        for (index_t row = begin; row < end; row += kSlab, turn ^= 1) {
            Slab &s = slabs[turn], &below = slabs[turn ^ 1];
            for (index_t k = 0; k < m.columns; k += kDepth, ready ^= 1) {
                const bool more = k + kDepth < m.columns;
                if (!more && row + kSlab >= end) {
                    meet_all<Unit>(s, k, work->tiles[ready], at, blocks, work->sums, nullptr);
                    continue;
                }
                if (!more) below.move_to(row + kSlab);
                Ahead<Unit> ahead(more ? s : below, more ? k + kDepth : 0, work->tiles[ready ^ 1]);
                meet_all<Unit>(s, k, work->tiles[ready], at, blocks, work->sums, &ahead);
            }
            for (index_t t = 0; t < count; t += kSlab)
                scatter_pair(s, work->sums[t / kSlab], {kTile, kTile}, std::min(kSlab, count - t), y + first + t);
            odd_rows(s, at, {kTile, kTile}, count, y + first);
        }
    }
}

template <class Unit>
void slabs(const Matrix& m, index_t begin, index_t end, const bf16_t* const* x, float* const* y, index_t n) {
    if (n <= kTile)
        slabs_of_few<Unit, 1>(m, begin, end, x, y, n);
    else if (n <= kFew)
        slabs_of_few<Unit, 2>(m, begin, end, x, y, n);
    else
        slabs_of_many<Unit>(m, begin, end, x, y, n);
}

void multiply(const Matrix& m, index_t begin, index_t end, const bf16_t* const* x, float* const* y, index_t n) {
    if (m.format == Format::Fp4)
        slabs<Fp4Unit>(m, begin, end, x, y, n);
    else if (m.format == Format::Fp8)
        slabs<Fp8Unit>(m, begin, end, x, y, n);
    else
        slabs<Bf16Unit>(m, begin, end, x, y, n);
    // Leave no tiles behind: their state would be saved at every switch of tasks.
    _tile_release();
}

void interleave(const bf16_t* const* rows, index_t count, index_t width, index_t columns, bf16_t* block) {
    interleave_words(rows, count, width, Bf16Products::width(columns), block);
}

}  // namespace

const Bf16Products kAmxProducts = {arrange, interleave, multiply};

}  // namespace fourfold
