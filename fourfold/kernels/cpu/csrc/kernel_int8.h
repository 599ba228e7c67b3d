// Products of FP4 with int8 inputs, as a template over the instruction set `S`.
// Included by files with their own flags, hence the unnamed namespace.
//
// Twice an e2m1 value is a whole number, so the products of a group of 32 columns are summed exactly; the group's sum
// times both scales then joins a float32 sum.  A unit is one group for each lane.  Its codes are turned in registers so
// that a lane meets all of its group: vector 2d + h has, of each group, columns 8d + h, + 2, + 4, + 6.
//
// S provides: lanes; I, vectors of integers, with load, turn(I[4]), and low(I), high(I): the even, the odd columns'
//   doubled values plus `offset`; Sum with start(p), add<v>(Sum&, weights, x) for vectors v = 0 .. 7, and value(Sum) as F;
//   F, vectors of floats, with zero/load/store/mul/fma/sum; scales(p): e8m0 of a unit, in the order of its lanes;
//   panel, tile: rows of the matrix and of x that its registers hold.
#pragma once

#include <algorithm>

#include "int8_rounding.h"
#include "kernel.h"
#include "scratch.h"

namespace fourfold {
namespace {

constexpr int kVectors = 8;  // of a unit

template <class S>
struct Unit {
    static constexpr index_t columns = kInt8Group * S::lanes, codes = columns / 2, vector = 4 * S::lanes;
    // x: its vectors, then by lane the scale, half of it as weights are doubled, and what cancels the offset.
    static constexpr index_t scale_at = kVectors * vector, start_at = scale_at + vector, bytes = start_at + vector;
    // Decoded rows: their vectors side by side, then their scales.
    static constexpr index_t decoded = (kVectors + 1) * vector;

    // The lane of a group: turning leaves groups of the same register apart.
    static index_t lane(index_t group) {
        constexpr index_t apart = S::lanes / 4;
        return group % apart * 4 + group / apart;
    }
    static index_t count(index_t all) { return ceil_div(all, columns); }
};

template <class S>
index_t packed_bytes(index_t columns) {
    return Unit<S>::count(columns) * Unit<S>::bytes;
}

template <class S>
void pack_int8(const float* x, index_t columns, std::uint8_t* packed) {
    using U = Unit<S>;
    std::memset(packed, 0, packed_bytes<S>(columns));
    for (index_t k = 0; k < columns; k += kInt8Group) {
        std::uint8_t* unit = packed + k / U::columns * U::bytes;
        const index_t at = 4 * U::lane(k % U::columns / kInt8Group);
        float whole[kInt8Group];
        const float scale = round_int8_group(x + k, kInt8Group, whole) * 0.5f;
        std::int32_t sum = 0;
        for (index_t c = 0; c < kInt8Group; ++c) {
            const auto value = std::int8_t(whole[c]);
            unit[(c / 8 * 2 + c % 2) * U::vector + at + c % 8 / 2] = std::uint8_t(value);
            sum += value;
        }
        const std::int32_t start = -S::offset * sum;
        std::memcpy(unit + U::scale_at + at, &scale, sizeof scale);
        std::memcpy(unit + U::start_at + at, &start, sizeof start);
    }
}

// A row's codes and scales from a unit on.
struct StoredRow {
    const std::uint8_t *codes, *scales;
};

inline StoredRow stored_row(const Matrix& m, index_t row) {
    return {m.weight + row * m.row_bytes(), m.scale + row * m.scales_per_row()};
}

// A decoded unit.
template <class S>
using Weights = typename S::I[kVectors];

template <class S>
FOURFOLD_INLINE void decode(const StoredRow& at, Weights<S>& w) {
    typename S::I turned[4];
    for (int i = 0; i < 4; ++i) turned[i] = S::load(at.codes + i * Unit<S>::vector);
    S::turn(turned);
    for (int i = 0; i < 4; ++i) w[2 * i] = S::low(turned[i]), w[2 * i + 1] = S::high(turned[i]);
}

// use(weights, scales, unit) for the units of a row.
template <class S, class Use>
FOURFOLD_INLINE void for_units(const Matrix& m, index_t row, Use&& use) {
    using U = Unit<S>;
    constexpr index_t ahead = 2048;  // bytes to fetch before they are wanted
    StoredRow at = stored_row(m, row);
    Weights<S> w;
    index_t k = 0;
    for (; k + U::columns <= m.columns; k += U::columns, at.codes += U::codes, at.scales += S::lanes) {
        fetch(at.codes + ahead, U::codes);
        decode<S>(at, w);
        use(w, S::scales(at.scales), k / U::columns);
    }
    if (const index_t rest = m.columns - k) {
        std::uint8_t codes[U::codes] = {}, scales[S::lanes] = {};
        std::memcpy(codes, at.codes, rest / 2);
        std::memcpy(scales, at.scales, rest / kFp4Group);
        decode<S>({codes, scales}, w);
        use(w, S::scales(scales), k / U::columns);
    }
}

template <class S, int v, int R, int T>
FOURFOLD_INLINE void add_vector(typename S::Sum (&sum)[R][T], const typename S::I (&w)[R],
                                const std::uint8_t* const (&x)[T]) {
    for (int t = 0; t < T; ++t) {
        const typename S::I values = S::load(x[t] + v * Unit<S>::vector);
        for (int r = 0; r < R; ++r) S::template add<v>(sum[r][t], w[r], values);
    }
}

// total += the sums of one unit times the scales of both sides.
template <class S, int R, int T>
FOURFOLD_INLINE void scale_sums(const typename S::Sum (&sum)[R][T], const typename S::F (&scale)[R],
                                const std::uint8_t* const (&x)[T], typename S::F (&total)[R][T]) {
    for (int t = 0; t < T; ++t) {
        const typename S::F other = S::load(reinterpret_cast<const float*>(x[t] + Unit<S>::scale_at));
        for (int r = 0; r < R; ++r) total[r][t] = S::fma(S::value(sum[r][t]), S::mul(scale[r], other), total[r][t]);
    }
}

template <class S, int R, int T>
FOURFOLD_INLINE void start_sums(const std::uint8_t* const (&x)[T], typename S::Sum (&sum)[R][T]) {
    for (int t = 0; t < T; ++t)
        for (int r = 0; r < R; ++r) sum[r][t] = S::start(x[t] + Unit<S>::start_at);
}

// Few tokens: weights are decoded in registers.
template <class S, int T>
void few_int8(const Matrix& m, index_t begin, index_t end, const std::uint8_t* const* x, float* const* y) {
    for (index_t row = begin; row < end; ++row) {
        typename S::F total[1][T];
        for (int t = 0; t < T; ++t) total[0][t] = S::zero();
        const auto meet = [&](const Weights<S>& w, typename S::F scale, index_t unit) __attribute__((always_inline)) {
            const std::uint8_t* at[T];
            for (int t = 0; t < T; ++t) at[t] = x[t] + unit * Unit<S>::bytes;
            typename S::Sum sum[1][T];
            start_sums<S, 1, T>(at, sum);
            add_vector<S, 0, 1, T>(sum, {w[0]}, at);
            add_vector<S, 1, 1, T>(sum, {w[1]}, at);
            add_vector<S, 2, 1, T>(sum, {w[2]}, at);
            add_vector<S, 3, 1, T>(sum, {w[3]}, at);
            add_vector<S, 4, 1, T>(sum, {w[4]}, at);
            add_vector<S, 5, 1, T>(sum, {w[5]}, at);
            add_vector<S, 6, 1, T>(sum, {w[6]}, at);
            add_vector<S, 7, 1, T>(sum, {w[7]}, at);
            scale_sums<S, 1, T>(sum, {scale}, at, total);
        };
        for_units<S>(m, row, meet);
        for (int t = 0; t < T; ++t) y[t][row] = S::sum(total[0][t]);
    }
}

template <class S, int v, int R, int T>
FOURFOLD_INLINE void add_panel_vector(typename S::Sum (&sum)[R][T], const std::uint8_t* panel,
                                      const std::uint8_t* const (&x)[T]) {
    typename S::I w[R];
    for (int r = 0; r < R; ++r) w[r] = S::load(panel + (v * R + r) * Unit<S>::vector);
    add_vector<S, v, R, T>(sum, w, x);
}

// R decoded rows, [unit][vector][row] and [unit][row] scales, times T rows of x.
template <class S, int R, int T>
void multiply_panel(const std::uint8_t* panel, index_t units, const std::uint8_t* const* x, index_t row, index_t count,
                    float* const* y) {
    const std::uint8_t* at[T];
    typename S::F total[R][T];
    for (int t = 0; t < T; ++t) at[t] = x[t];
    for (int r = 0; r < R; ++r)
        for (int t = 0; t < T; ++t) total[r][t] = S::zero();
    for (index_t unit = 0; unit < units; ++unit, panel += R * Unit<S>::decoded) {
        typename S::Sum sum[R][T];
        start_sums<S, R, T>(at, sum);
        add_panel_vector<S, 0, R, T>(sum, panel, at);
        add_panel_vector<S, 1, R, T>(sum, panel, at);
        add_panel_vector<S, 2, R, T>(sum, panel, at);
        add_panel_vector<S, 3, R, T>(sum, panel, at);
        add_panel_vector<S, 4, R, T>(sum, panel, at);
        add_panel_vector<S, 5, R, T>(sum, panel, at);
        add_panel_vector<S, 6, R, T>(sum, panel, at);
        add_panel_vector<S, 7, R, T>(sum, panel, at);
        typename S::F scale[R];
        for (int r = 0; r < R; ++r)
            scale[r] = S::load(reinterpret_cast<const float*>(panel + (kVectors * R + r) * Unit<S>::vector));
        scale_sums<S, R, T>(sum, scale, at, total);
        for (int t = 0; t < T; ++t) at[t] += Unit<S>::bytes;
    }
    for (int t = 0; t < T; ++t)
        for (index_t r = 0; r < R; ++r)
            if (r < count) y[t][row + r] = S::sum(total[r][t]);
}

// Many tokens: rows are decoded into the second-level cache, then meet a few tokens after the other.
template <class S>
void many_int8(const Matrix& m, index_t begin, index_t end, const std::uint8_t* const* x, float* const* y, index_t n) {
    using U = Unit<S>;
    constexpr int R = S::panel, T = S::tile;
    constexpr index_t cache = 192 * 1024;
    thread_local Scratch memory;
    const index_t units = U::count(m.columns), row_bytes = units * U::decoded;
    const index_t rows = std::clamp<index_t>(cache / row_bytes / R, 1, 16) * R;
    std::uint8_t* slab = memory.get<std::uint8_t>(rows * row_bytes);
    for (index_t first = begin; first < end; first += rows) {
        const index_t last = std::min(first + rows, end);
        for (index_t row = first; row < last; ++row) {
            const index_t r = (row - first) % R;
            std::uint8_t* panel = slab + (row - first - r) * row_bytes;
            const auto keep = [&](const Weights<S>& w, typename S::F scale, index_t unit) __attribute__((always_inline)) {
                std::uint8_t* to = panel + unit * R * U::decoded + r * U::vector;
                for (int v = 0; v < kVectors; ++v) S::store(to + v * R * U::vector, w[v]);
                S::store(reinterpret_cast<float*>(to + kVectors * R * U::vector), scale);
            };
            for_units<S>(m, row, keep);
        }
        index_t t = 0;
        const auto meet = [&]<int tokens>(std::integral_constant<int, tokens>) {
            for (index_t row = first; row < last; row += R)
                multiply_panel<S, R, tokens>(slab + (row - first) * row_bytes, units, x + t, row, last - row, y + t);
            t += tokens;
        };
        while (t + T <= n) meet(std::integral_constant<int, T>());
        while (t < n) meet(std::integral_constant<int, 1>());
    }
}

template <class S>
void rows_int8(const Matrix& m, index_t begin, index_t end, const std::uint8_t* const* x, float* const* y, index_t n) {
    if (n == 1) return few_int8<S, 1>(m, begin, end, x, y);
    if (n == 2) return few_int8<S, 2>(m, begin, end, x, y);
    if (n == 3) return few_int8<S, 3>(m, begin, end, x, y);
    many_int8<S>(m, begin, end, x, y, n);
}

}  // namespace
}  // namespace fourfold
