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

}  // namespace fourfold
