#include "ops.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <new>
#include <numeric>
#include <vector>

#include "isa.h"
#include "thread_pool.h"

namespace fourfold {
namespace {

// Weight bytes times rows of x below which sharing the work costs more than it saves.
constexpr index_t kWorthSharing = 192 * 1024;

// Scratch memory that a thread keeps: no allocation in the usual call.
class Scratch {
public:
    float* floats(index_t count) {
        if (count > size_) {
            memory_.reset(static_cast<float*>(::operator new(count * sizeof(float), kAlign)));
            size_ = count;
        }
        return memory_.get();
    }

private:
    static constexpr std::align_val_t kAlign{64};
    struct Free {
        void operator()(float* p) const { ::operator delete(p, kAlign); }
    };
    std::unique_ptr<float, Free> memory_;
    index_t size_ = 0;
};

// How a matrix's rows are cut into pieces for the threads; n is the number of x rows that each weight meets.
// Few rows: small pieces, for balance.  Many: as much as stays in the cache, because each piece reads all of x.
struct Partition {
    index_t piece, count;
    Partition(const Matrix& matrix, index_t n) {
        const index_t bytes = n <= 4 ? 64 * 1024 : 256 * 1024;
        const index_t fair = ceil_div(matrix.rows, 4 * ThreadPool::instance().threads());
        piece = std::min(bytes / std::max<index_t>(1, matrix.row_bytes()), fair);
        piece = std::max<index_t>(16, round_up(piece, 16));
        count = ceil_div(matrix.rows, piece);
    }
};

template <class Piece>
void share(index_t count, index_t work, Piece&& piece) {
    if (work < kWorthSharing)
        for (index_t i = 0; i < count; ++i) piece(i);
    else
        ThreadPool::instance().run(count, piece);
}

float* pack_rows(const Kernels& k, Format format, const float* x, index_t n, index_t columns, Scratch& scratch) {
    const index_t stride = packed_stride(columns);
    float* packed = scratch.floats(n * stride);
    for (index_t i = 0; i < n; ++i) k.pack(format, x + i * columns, columns, packed + i * stride);
    return packed;
}

// x / 2^e to the nearest e4m3 (ties to even) and back, |x| / 2^e <= 448.
float to_e4m3(float x, float scale) {
    const float v = x / scale;
    float magnitude = std::fabs(v);
    if (magnitude < 0.015625f) {  // subnormals: multiples of 2^-9, which is the spacing of floats near 2^14
        magnitude = (magnitude + 16384.f) - 16384.f;
    } else {
        std::uint32_t bits;
        std::memcpy(&bits, &magnitude, sizeof bits);
        bits += 0x7ffffu + (bits >> 20 & 1);
        bits &= ~0xfffffu;
        std::memcpy(&magnitude, &bits, sizeof bits);
    }
    return std::copysign(magnitude, v) * scale;
}

// formats.round_fp8 with groups of 128: scale 2^ceil(log2(amax / 448)), amax at least 1e-4.
void round_fp8(float* x, index_t width) {
    for (index_t begin = 0; begin < width; begin += kFp8Block) {
        const index_t end = std::min(begin + kFp8Block, width);
        float amax = 1e-4f;
        for (index_t i = begin; i < end; ++i) amax = std::max(amax, std::fabs(x[i]));
        int exponent;
        const float mantissa = std::frexp(amax / 448.f, &exponent);
        const float scale = std::ldexp(1.f, mantissa == 0.5f ? exponent - 1 : exponent);
        for (index_t i = begin; i < end; ++i) x[i] = to_e4m3(x[i], scale);
    }
}

float swiglu(float gate, float up, float limit) {
    gate = std::min(gate, limit);
    return gate / (1.f + std::exp(-gate)) * std::clamp(up, -limit, limit);
}

// The (token, choice) pairs of one expert: slots[begin .. end).
struct Group {
    index_t expert, begin, end;
};

// Slots sorted by expert, tokens ascending within one.
std::vector<Group> group_by_expert(const index_t* indices, std::vector<index_t>& slots) {
    std::iota(slots.begin(), slots.end(), 0);
    std::stable_sort(slots.begin(), slots.end(), [&](index_t a, index_t b) { return indices[a] < indices[b]; });
    std::vector<Group> groups;
    for (index_t i = 0; i < index_t(slots.size()); ++i) {
        if (groups.empty() || groups.back().expert != indices[slots[i]])
            groups.push_back({indices[slots[i]], i, i});
        groups.back().end = i + 1;
    }
    return groups;
}

// piece(group, first row, last row) for all groups and all rows of their matrices.
template <class Piece>
void share_groups(const std::vector<Group>& groups, const Matrix& matrix, index_t slots, Piece&& piece) {
    const Partition part(matrix, std::max<index_t>(1, slots / index_t(groups.size())));
    share(index_t(groups.size()) * part.count, matrix.rows * matrix.row_bytes() * slots, [&](index_t i) {
        const index_t begin = i % part.count * part.piece;
        piece(groups[i / part.count], begin, std::min(begin + part.piece, matrix.rows));
    });
}

}  // namespace

void linear(const Matrix& matrix, const float* x, index_t n, float* y) {
    grouped_linear(matrix, 1, x, n, y);
}

void grouped_linear(const Matrix& stack, index_t groups, const float* x, index_t n, float* y) {
    thread_local Scratch scratch;
    thread_local std::vector<const float*> in;
    thread_local std::vector<float*> out;
    const Kernels& k = kernels();
    const float* packed = pack_rows(k, stack.format, x, n * groups, stack.columns, scratch);
    in.resize(n * groups);
    out.resize(n * groups);
    for (index_t g = 0; g < groups; ++g) {
        for (index_t i = 0; i < n; ++i) {
            in[g * n + i] = packed + (i * groups + g) * packed_stride(stack.columns);
            out[g * n + i] = y + (i * groups + g) * stack.rows;
        }
    }
    const float* const* from = in.data();  // thread_local names mean another variable on a helper
    float* const* to = out.data();
    const Partition part(stack, n);
    share(groups * part.count, groups * stack.rows * stack.row_bytes() * n, [&](index_t piece) {
        const index_t g = piece / part.count, begin = piece % part.count * part.piece;
        k.rows(stack[g], begin, std::min(begin + part.piece, stack.rows), from + g * n, to + g * n, n);
    });
}

void experts(const Experts& e, const float* x, const index_t* indices, const float* weights, index_t n,
             index_t choices, float* y) {
    thread_local Scratch rounded_memory, packed_memory, inner_memory, repacked_memory, out_memory;
    const Kernels& k = kernels();
    const index_t width = e.w1.columns, inner_width = e.w1.rows, count = n * choices;
    std::memset(y, 0, n * width * sizeof(float));
    if (count == 0) return;

    if (e.round_input) {
        float* rounded = rounded_memory.floats(n * width);
        std::memcpy(rounded, x, n * width * sizeof(float));
        for (index_t i = 0; i < n; ++i) round_fp8(rounded + i * width, width);
        x = rounded;
    }
    const float* packed = pack_rows(k, e.w1.format, x, n, width, packed_memory);
    std::vector<index_t> slots(count);
    const std::vector<Group> groups = group_by_expert(indices, slots);

    // Row i of these belongs to slots[i]: the experts' inputs, the two products, the results.
    std::vector<const float*> in(count);
    std::vector<float*> gate(count), up(count), out(count);
    float* inner = inner_memory.floats(2 * count * inner_width);
    float* results = out_memory.floats(count * width);
    for (index_t i = 0; i < count; ++i) {
        in[i] = packed + slots[i] / choices * packed_stride(width);
        gate[i] = inner + i * inner_width;
        up[i] = inner + (count + i) * inner_width;
        out[i] = results + i * width;
    }
    share_groups(groups, e.w1, 2 * count, [&](const Group& g, index_t begin, index_t end) {
        const index_t rows = g.end - g.begin;
        k.rows(e.w1[g.expert], begin, end, &in[g.begin], &gate[g.begin], rows);
        k.rows(e.w3[g.expert], begin, end, &in[g.begin], &up[g.begin], rows);
        for (index_t i = g.begin; i < g.end; ++i)
            for (index_t o = begin; o < end; ++o)
                gate[i][o] = swiglu(gate[i][o], up[i][o], e.limit) * weights[slots[i]];
    });
    if (e.round_input)
        for (index_t i = 0; i < count; ++i) round_fp8(gate[i], inner_width);
    const float* repacked = pack_rows(k, e.w2.format, inner, count, inner_width, repacked_memory);
    for (index_t i = 0; i < count; ++i) in[i] = repacked + i * packed_stride(inner_width);
    share_groups(groups, e.w2, count, [&](const Group& g, index_t begin, index_t end) {
        k.rows(e.w2[g.expert], begin, end, &in[g.begin], &out[g.begin], g.end - g.begin);
    });
    for (index_t i = 0; i < count; ++i) {
        float* sum = y + slots[i] / choices * width;
        for (index_t o = 0; o < width; ++o) sum[o] += out[i][o];
    }
}

}  // namespace fourfold
