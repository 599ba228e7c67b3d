// The operations of the kernel contract that run natively, on plain memory.
#pragma once

#include "matrix.h"

namespace fourfold {

// y [n, rows] = x [n, columns] times the matrix.
void linear(const Matrix& matrix, const float* x, index_t n, float* y);

// y [n, groups, rows] = x [n, groups, columns], each group times its own matrix of the stack.
void grouped_linear(const Matrix& stack, index_t groups, const float* x, index_t n, float* y);

struct Experts {
    Matrix w1, w3, w2;  // the first of each stack
    float limit;
    bool round_input;
};

// y [n, D] = sum over k of w2 (weight * swiglu(w1 x, w3 x)) for the experts indices [n, k], in ascending order
// of their number.  The indices have been checked.
void experts(const Experts& e, const float* x, const index_t* indices, const float* weights, index_t n,
             index_t k, float* y);

struct StreamWeights {
    const float* scale;  // [3]
    const float* base;   // [(2 + n) n]
    int iterations;      // of Sinkhorn-Knopp
    float eps;
};

// mix [tokens, (2 + n) n] -> pre, post [tokens, n], comb [tokens, n, n].  False: not for this n.
bool stream_weights(const StreamWeights& w, index_t n, const float* mix, index_t tokens, float* pre, float* post,
                    float* comb);

}  // namespace fourfold
