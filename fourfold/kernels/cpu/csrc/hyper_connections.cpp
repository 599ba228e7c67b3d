// mHC: from the mixed streams of each token to the weights of its residual streams.
#include <algorithm>
#include <cmath>

#include "ops.h"
#include "thread_pool.h"

namespace fourfold {
namespace {

constexpr index_t kTokensAPiece = 64;

float sigmoid(float v) { return 1.f / (1.f + std::exp(-v)); }

// Row i of m divided by (its sum + eps), or column i; eps as in the published model, inside every division.
template <int n>
void divide_rows(float (&m)[n][n], float eps) {
    for (int i = 0; i < n; ++i) {
        float sum = 0.f;
        for (int j = 0; j < n; ++j) sum += m[i][j];
        for (int j = 0; j < n; ++j) m[i][j] /= sum + eps;
    }
}

template <int n>
void divide_columns(float (&m)[n][n], float eps) {
    float sum[n] = {};
    for (int i = 0; i < n; ++i)
        for (int j = 0; j < n; ++j) sum[j] += m[i][j];
    for (int i = 0; i < n; ++i)
        for (int j = 0; j < n; ++j) m[i][j] /= sum[j] + eps;
}

template <int n>
void one_token(const StreamWeights& w, const float* mix, float* pre, float* post, float* comb) {
    for (int i = 0; i < n; ++i) {
        pre[i] = sigmoid(mix[i] * w.scale[0] + w.base[i]) + w.eps;
        post[i] = 2.f * sigmoid(mix[n + i] * w.scale[1] + w.base[n + i]);
    }
    float m[n][n];
    for (int i = 0; i < n; ++i) {
        float largest = -INFINITY, sum = 0.f;
        for (int j = 0; j < n; ++j) {
            m[i][j] = mix[(2 + i) * n + j] * w.scale[2] + w.base[(2 + i) * n + j];
            largest = std::max(largest, m[i][j]);
        }
        for (int j = 0; j < n; ++j) sum += m[i][j] = std::exp(m[i][j] - largest);
        for (int j = 0; j < n; ++j) m[i][j] = m[i][j] / sum + w.eps;
    }
    divide_columns(m, w.eps);
    for (int step = 1; step < w.iterations; ++step) {
        divide_rows(m, w.eps);
        divide_columns(m, w.eps);
    }
    for (int i = 0; i < n; ++i) std::copy(m[i], m[i] + n, comb + i * n);
}

template <int n>
void all_tokens(const StreamWeights& w, const float* mix, index_t tokens, float* pre, float* post, float* comb) {
    ThreadPool::instance().run(ceil_div(tokens, kTokensAPiece), [&](index_t piece) {
        const index_t end = std::min((piece + 1) * kTokensAPiece, tokens);
        for (index_t t = piece * kTokensAPiece; t < end; ++t)
            one_token<n>(w, mix + t * (2 + n) * n, pre + t * n, post + t * n, comb + t * n * n);
    });
}

}  // namespace

bool stream_weights(const StreamWeights& w, index_t n, const float* mix, index_t tokens, float* pre, float* post,
                    float* comb) {
    if (n == 4)
        all_tokens<4>(w, mix, tokens, pre, post, comb);
    else if (n == 2)
        all_tokens<2>(w, mix, tokens, pre, post, comb);
    else
        return false;
    return true;
}

}  // namespace fourfold
