// mHC: the weights of a token's residual streams, and what they do to them.  V4 report 2.2.
#pragma once

#include "vector_rows.h"

namespace fourfold {
namespace {

// Each row (step 1) or column (step n) of m divided by (its sum + eps); eps as in the published model.
template <class S>
FOURFOLD_INLINE void divide_lines(typename S::F* m, int n, int line, int step, typename S::F eps) {
    for (int i = 0; i < n; ++i) {
        typename S::F* first = m + i * line;
        typename S::F sum = first[0];
        for (int j = 1; j < n; ++j) sum = S::add(sum, first[j * step]);
        const typename S::F factor = S::div(S::broadcast(1.f), S::add(sum, eps));
        for (int j = 0; j < n; ++j) first[j * step] = S::mul(first[j * step], factor);
    }
}

template <class S>
FOURFOLD_INLINE void sinkhorn(typename S::F* m, int n, int iterations, typename S::F eps) {
    for (int i = 0; i < n; ++i) {
        typename S::F *row = m + i * n, most = row[0], sum = S::zero();
        for (int j = 1; j < n; ++j) most = S::max(most, row[j]);
        for (int j = 0; j < n; ++j) {
            row[j] = exponential<S>(S::sub(row[j], most));
            sum = S::add(sum, row[j]);
        }
        for (int j = 0; j < n; ++j) row[j] = S::add(S::div(row[j], sum), eps);
    }
    divide_lines<S>(m, n, 1, n, eps);
    for (int step = 1; step < iterations; ++step) {
        divide_lines<S>(m, n, n, 1, eps);
        divide_lines<S>(m, n, 1, n, eps);
    }
}

// A lane a token.  columns [(2 + n) n, lanes]: the tokens' mixes, which become their weights.
template <class S>
FOURFOLD_INLINE void lanes_of_tokens(const StreamMixing& mixing, int n, float* columns) {
    using F = typename S::F;
    constexpr int most = 16;
    const F eps = S::broadcast(mixing.eps);
    F m[most * most];
    const auto logit = [&](int i, int part) {
        return S::fma(S::load(columns + i * S::lanes), S::broadcast(mixing.scale[part]),
                      S::broadcast(mixing.base[i]));
    };
    for (int i = 0; i < n; ++i) {
        S::store(columns + i * S::lanes, S::add(sigmoid<S>(logit(i, 0)), eps));
        const F half = sigmoid<S>(logit(n + i, 1));
        S::store(columns + (n + i) * S::lanes, S::add(half, half));
    }
    for (int i = 0; i < n * n; ++i) m[i] = logit(2 * n + i, 2);
    sinkhorn<S>(m, n, mixing.iterations, eps);
    for (int i = 0; i < n * n; ++i) S::store(columns + (2 * n + i) * S::lanes, m[i]);
}

template <class S>
void stream_weights(const StreamMixing& mixing, index_t n, const float* mix, index_t tokens, float* scratch,
                    float* pre, float* post, float* comb) {
    const index_t width = (2 + n) * n;
    for (index_t begin = 0; begin < tokens; begin += S::lanes) {
        const index_t count = S::lanes < tokens - begin ? S::lanes : tokens - begin;
        for (index_t i = 0; i < width; ++i)
            for (index_t t = 0; t < S::lanes; ++t)
                scratch[i * S::lanes + t] = t < count ? mix[(begin + t) * width + i] : 0.f;
        // A constant n keeps the matrix in registers.
        if (n == 4)
            lanes_of_tokens<S>(mixing, 4, scratch);
        else
            lanes_of_tokens<S>(mixing, int(n), scratch);
        for (index_t t = 0; t < count; ++t) {
            for (index_t i = 0; i < n; ++i) {
                pre[(begin + t) * n + i] = scratch[i * S::lanes + t];
                post[(begin + t) * n + i] = scratch[(n + i) * S::lanes + t];
            }
            for (index_t i = 0; i < n * n; ++i)
                comb[(begin + t) * n * n + i] = scratch[(2 * n + i) * S::lanes + t];
        }
    }
}

template <class S>
void head_weights(const StreamMixing& mixing, index_t n, const float* mix, float* pre) {
    for (index_t i = 0; i < n; i += S::lanes) {
        const typename S::F logit = S::fma(load<S>(mix + i, n - i), S::broadcast(mixing.scale[0]),
                                           load<S>(mixing.base + i, n - i));
        store<S>(pre + i, S::add(sigmoid<S>(logit), S::broadcast(mixing.eps)), n - i);
    }
}

template <class S>
void weighted_sum(const float* pre, const void* streams, Type type, index_t n, index_t width, void* y) {
    with_type(type, streams, [&](auto* x) {
        auto* to = static_cast<std::remove_const_t<std::remove_pointer_t<decltype(x)>>*>(y);
        for (index_t i = 0; i < width; i += S::lanes) {
            typename S::F sum = S::mul(S::broadcast(pre[0]), load<S>(x + i, width - i));
            for (index_t j = 1; j < n; ++j)
                sum = S::fma(S::broadcast(pre[j]), load<S>(x + j * width + i, width - i), sum);
            store<S>(to + i, sum, width - i);
        }
    });
}

// Every stream of y takes a part of the output and of every stream of x.
template <class S>
void hc_post(const void* output, const void* streams, Type type, const float* post, const float* comb, index_t n,
             index_t width, void* y) {
    with_type(type, streams, [&](auto* x) {
        auto* from = static_cast<decltype(x)>(output);
        auto* to = static_cast<std::remove_const_t<std::remove_pointer_t<decltype(x)>>*>(y);
        for (index_t i = 0; i < width; i += S::lanes) {
            const index_t left = width - i;
            const typename S::F out = load<S>(from + i, left);
            for (index_t k = 0; k < n; ++k) {
                typename S::F sum = S::mul(S::broadcast(comb[k]), load<S>(x + i, left));
                for (index_t j = 1; j < n; ++j)
                    sum = S::fma(S::broadcast(comb[j * n + k]), load<S>(x + j * width + i, left), sum);
                store<S>(to + k * width + i, S::fma(S::broadcast(post[k]), out, sum), left);
            }
        }
    });
}

}  // namespace
}  // namespace fourfold
