#include "operand.h"

#include <algorithm>
#include <cstring>

#include "int8_rounding.h"
#include "thread_pool.h"

namespace fourfold {
namespace {

constexpr index_t kValuesAPiece = 1 << 15;

// piece(first row, last row) in pieces that are worth a thread.
template <class Piece>
void share_values(index_t count, index_t columns, Piece&& piece) {
    const index_t rows = std::max<index_t>(1, kValuesAPiece / std::max<index_t>(1, columns));
    ThreadPool::instance().run(ceil_div(count, rows), [&](index_t i) {
        piece(i * rows, std::min(count, (i + 1) * rows));
    });
}

void widen(const bf16_t* x, index_t count, float* out) {
    for (index_t i = 0; i < count; ++i) {
        const std::uint32_t bits = std::uint32_t{x[i]} << 16;
        std::memcpy(out + i, &bits, sizeof bits);
    }
}

void round_int8(const float* x, index_t count, index_t group, float* out) {
    for (index_t i = 0; i < count; i += group) {
        const index_t n = std::min(group, count - i);
        const float scale = round_int8_group(x + i, n, out + i);
        for (index_t j = i; j < i + n; ++j) out[j] *= scale;
    }
}

// Row i of x as float32, rounded; `memory` has room for it.
const float* rounded_row(const Activations& x, index_t i, Rounding rounding, float* memory) {
    const float* row = x.f32 ? x.f32 + i * x.stride : memory;
    if (!x.f32) widen(x.bf16 + i * x.stride, x.columns, memory);
    if (rounding == Rounding::Fp8) {
        kernels().round_fp8(row, x.columns, memory);
        return memory;
    }
    if (rounding == Rounding::Int8 || rounding == Rounding::Int8Groups) {
        round_int8(row, x.columns, rounding == Rounding::Int8 ? x.columns : kInt8Group, memory);
        return memory;
    }
    return row;
}

// The rows of all selections, one after the other.
template <class T>
void list_rows(std::vector<Operand::Selection>& selections, const T* rows, index_t stride,
               std::vector<const T*>& pointers) {
    pointers.clear();
    for (Operand::Selection& s : selections) {
        s.first_block = index_t(pointers.size());
        for (index_t i = 0; i < s.count; ++i) pointers.push_back(rows + (s.rows ? s.rows[i] : i) * stride);
    }
}

}  // namespace

void Operand::prepare(const Activations& x, Rounding rounding, Format format, Products products) {
    products_ = products;
    columns_ = x.columns;
    switch (products) {
        case Products::F32:
            return prepare_f32(x, rounding, format);
        case Products::Bf16:
            return prepare_bf16(x, rounding, format);
        case Products::Int8:
            return prepare_int8(x);
    }
}

void Operand::prepare_bf16(const Activations& x, Rounding rounding, Format format) {
    const index_t width = Bf16Products::width(x.columns);
    bf16_t* rows = rows_memory_.get<bf16_t>(x.count * width);
    bf16_rows_ = rows;
    bf16_stride_ = width;
    share_values(x.count, x.columns, [&](index_t begin, index_t end) {
        thread_local Scratch wide_memory, narrow_memory;
        float* wide = wide_memory.get<float>(x.columns);
        bf16_t* narrow = narrow_memory.get<bf16_t>(x.columns);
        for (index_t i = begin; i < end; ++i) {
            const bf16_t* row = narrow;
            if (x.bf16 && rounding == Rounding::Bf16)
                row = x.bf16 + i * x.stride;
            else
                kernels().to_bf16(rounded_row(x, i, rounding, wide), x.columns, narrow);
            kernels().bf16->arrange(format, row, x.columns, rows + i * width);
        }
    });
}

void Operand::prepare_f32(const Activations& x, Rounding rounding, Format format) {
    const index_t stride = packed_stride(x.columns);
    float* rows = rows_memory_.get<float>(x.count * stride);
    f32_rows_ = rows;
    f32_stride_ = stride;
    share_values(x.count, x.columns, [&](index_t begin, index_t end) {
        thread_local Scratch scratch, narrow;
        float* memory = scratch.get<float>(x.columns);
        for (index_t i = begin; i < end; ++i) {
            const float* row = rounded_row(x, i, rounding, memory);
            if (rounding == Rounding::Bf16 && x.f32) {
                bf16_t* rounded = narrow.get<bf16_t>(x.columns);
                kernels().to_bf16(row, x.columns, rounded);
                widen(rounded, x.columns, memory);
                row = memory;
            }
            kernels().pack(format, row, x.columns, rows + i * stride);
        }
    });
}

void Operand::prepare_int8(const Activations& x) {
    int8_stride_ = kernels().int8->packed_bytes(x.columns);
    std::uint8_t* rows = rows_memory_.get<std::uint8_t>(x.count * int8_stride_);
    int8_rows_ = rows;
    share_values(x.count, x.columns, [&](index_t begin, index_t end) {
        thread_local Scratch scratch;
        float* memory = scratch.get<float>(x.columns);
        for (index_t i = begin; i < end; ++i)
            kernels().int8->pack(rounded_row(x, i, Rounding::None, memory), x.columns, rows + i * int8_stride_);
    });
}

void Operand::gather(std::vector<Selection>& selections) {
    switch (products_) {
        case Products::F32:
            return list_rows(selections, f32_rows_, f32_stride_, f32_pointers_);
        case Products::Bf16:
            return gather_blocks(selections);
        case Products::Int8:
            return list_rows(selections, int8_rows_, int8_stride_, int8_pointers_);
    }
}

void Operand::gather_blocks(std::vector<Selection>& selections) {
    constexpr index_t most = Bf16Products::block;
    struct Job {
        const Selection* selection;
        index_t block, offset;
    };
    thread_local std::vector<Job> kept_jobs;
    std::vector<Job>& jobs = kept_jobs;
    jobs.clear();
    blocks_.clear();
    const index_t width = Bf16Products::width(columns_);
    index_t used = 0;
    for (Selection& s : selections) {
        s.first_block = index_t(blocks_.size());
        for (index_t b = 0; b * most < s.count; ++b) {
            const index_t block_width = Bf16Products::block_width(s.count, b);
            // One row alone lies as the kernel wants it.
            blocks_.push_back(block_width == 1 ? row_bf16(s.rows ? s.rows[b * most] : b * most) : nullptr);
            if (block_width == 1) continue;
            jobs.push_back({&s, b, used});
            used += block_width * width;
        }
    }
    bf16_t* memory = block_memory_.get<bf16_t>(used);
    share_values(index_t(jobs.size()), most * columns_, [&](index_t begin, index_t end) {
        for (index_t j = begin; j < end; ++j) {
            const Selection& s = *jobs[j].selection;
            const index_t first = jobs[j].block * most, count = std::min(most, s.count - first);
            const bf16_t* rows[most];
            for (index_t i = 0; i < count; ++i) rows[i] = row_bf16(s.rows ? s.rows[first + i] : first + i);
            kernels().bf16->interleave(rows, count, Bf16Products::block_width(s.count, jobs[j].block), columns_,
                                       memory + jobs[j].offset);
        }
    });
    for (const Job& job : jobs) blocks_[job.selection->first_block + job.block] = memory + job.offset;
}

void Operand::multiply(const Matrix& matrix, index_t begin, index_t end, const Selection& s, float* const* y) const {
    switch (products_) {
        case Products::F32:
            return kernels().rows(matrix, begin, end, f32_pointers_.data() + s.first_block, y, s.count);
        case Products::Bf16:
            return kernels().bf16->rows(matrix, begin, end, blocks_.data() + s.first_block, y, s.count);
        case Products::Int8:
            return kernels().int8->rows(matrix, begin, end, int8_pointers_.data() + s.first_block, y, s.count);
    }
}

}  // namespace fourfold
