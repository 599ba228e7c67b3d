// When a call's work is worth more than one thread.
#pragma once

#include <algorithm>

#include "thread_pool.h"
#include "vector.h"

namespace fourfold {

// Bytes or products below which waking a thread costs more than it saves.
constexpr index_t kWorthSharing = 192 * 1024;

// rows(begin, end) for pieces of 0 .. n - 1, on as many threads as `work` deserves.
template <class Piece>
void share_rows(index_t n, index_t work, Piece&& rows) {
    ThreadPool& pool = ThreadPool::instance();
    if (work < kWorthSharing || pool.threads() <= 1 || n <= 1) {
        if (n > 0) rows(index_t{0}, n);
        return;
    }
    const index_t piece = ceil_div(n, std::min<index_t>(n, 4 * pool.threads()));
    pool.run(ceil_div(n, piece), [&](index_t i) { rows(i * piece, std::min((i + 1) * piece, n)); });
}

}  // namespace fourfold
