#include "operand.h"

#include <algorithm>
#include <cstring>

#include "int16_rounding.h"
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

// round(x, count, whole) -> scale of each group.
template <class Round>
void round_groups(const float* x, index_t count, index_t group, Round&& round, float* out) {
    for (index_t i = 0; i < count; i += group) {
        const index_t n = std::min(group, count - i);
        const float scale = round(x + i, n, out + i);
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
        round_groups(row, x.columns, rounding == Rounding::Int8 ? x.columns : kInt8Group, round_int8_group, memory);
        return memory;
    }
    if (rounding == Rounding::Int16Groups) {
        round_groups(row, x.columns, kInt16Group, round_int16_group, memory);
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

// The same in blocks as P wants them.
template <class P, class T>
void list_blocks(std::vector<Operand::Selection>& selections, const T* rows, index_t stride, index_t columns,
                 void (*interleave)(const T* const*, index_t, index_t, index_t, T*), Scratch& memory,
                 std::vector<const T*>& blocks) {
    struct Job {
        const Operand::Selection* selection;
        index_t block, offset;
    };
    thread_local std::vector<Job> kept_jobs;
    std::vector<Job>& jobs = kept_jobs;
    jobs.clear();
    blocks.clear();
    index_t used = 0;
    for (Operand::Selection& s : selections) {
        s.first_block = index_t(blocks.size());
        const index_t height = P::block_height(s.count);
        for (index_t b = 0; b * height < s.count; ++b) {
            const index_t width = P::block_width(s.count, b);
            // One row alone lies as the kernel wants it.
            blocks.push_back(width == 1 ? rows + (s.rows ? s.rows[b * height] : b * height) * stride : nullptr);
            if (width == 1) continue;
            jobs.push_back({&s, b, used});
            used += width * stride;
        }
    }
    T* laid_out = memory.get<T>(used);
    share_values(index_t(jobs.size()), P::most * columns, [&](index_t begin, index_t end) {
        for (index_t j = begin; j < end; ++j) {
            const Operand::Selection& s = *jobs[j].selection;
            const index_t first = jobs[j].block * P::most, count = std::min(P::most, s.count - first);
            const T* block[P::most];
            for (index_t i = 0; i < count; ++i) block[i] = rows + (s.rows ? s.rows[first + i] : first + i) * stride;
            interleave(block, count, P::block_width(s.count, jobs[j].block), columns, laid_out + jobs[j].offset);
        }
    });
    for (const Job& job : jobs) blocks[job.selection->first_block + job.block] = laid_out + job.offset;
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
            return prepare_bytes(x, kernels().int8->packed_bytes, kernels().int8->pack);
        case Products::Int16:
            return prepare_bytes(x, kernels().int16->packed_bytes, kernels().int16->pack);
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

void Operand::prepare_bytes(const Activations& x, index_t (*packed_bytes)(index_t),
                            void (*pack)(const float*, index_t, std::uint8_t*)) {
    byte_stride_ = packed_bytes(x.columns);
    std::uint8_t* rows = rows_memory_.get<std::uint8_t>(x.count * byte_stride_);
    byte_rows_ = rows;
    share_values(x.count, x.columns, [&](index_t begin, index_t end) {
        thread_local Scratch scratch;
        float* memory = scratch.get<float>(x.columns);
        for (index_t i = begin; i < end; ++i)
            pack(rounded_row(x, i, Rounding::None, memory), x.columns, rows + i * byte_stride_);
    });
}

void Operand::gather(std::vector<Selection>& selections) {
    switch (products_) {
        case Products::F32:
            return list_rows(selections, f32_rows_, f32_stride_, f32_pointers_);
        case Products::Bf16:
            return list_blocks<Bf16Products>(selections, bf16_rows_, bf16_stride_, columns_, kernels().bf16->interleave,
                                             block_memory_, blocks_);
        case Products::Int8:
            return list_rows(selections, byte_rows_, byte_stride_, byte_pointers_);
        case Products::Int16:
            return list_blocks<Int16Products>(selections, byte_rows_, byte_stride_, columns_,
                                              kernels().int16->interleave, block_memory_, byte_pointers_);
    }
}

void Operand::multiply(const Matrix& matrix, index_t begin, index_t end, const Selection& s, float* const* y) const {
    switch (products_) {
        case Products::F32:
            return kernels().rows(matrix, begin, end, f32_pointers_.data() + s.first_block, y, s.count);
        case Products::Bf16:
            return kernels().bf16->rows(matrix, begin, end, blocks_.data() + s.first_block, y, s.count);
        case Products::Int8:
            return kernels().int8->rows(matrix, begin, end, byte_pointers_.data() + s.first_block, y, s.count);
        case Products::Int16:
            return kernels().int16->rows(matrix, begin, end, byte_pointers_.data() + s.first_block, y, s.count);
    }
}

}  // namespace fourfold
