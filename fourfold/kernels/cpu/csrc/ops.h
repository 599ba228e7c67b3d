// Matrix products of the kernel contract on plain memory.
#pragma once

#include "operand.h"

namespace fourfold {

// y [n, rows] = round(x) [n, columns] times the matrix; rows of y `stride` apart, 0: without gaps.
void linear(const Matrix& matrix, const Activations& x, Rounding rounding, float* y, index_t stride = 0);

// y [n, groups, rows] = round(x) [n * groups, columns], each group times its own matrix of the stack.
void grouped_linear(const Matrix& stack, index_t groups, const Activations& x, Rounding rounding, float* y,
                    index_t stride = 0);

// One of several products with the same x: y as in linear.
struct Product {
    Matrix matrix;
    Rounding rounding;
    float* y;
    index_t stride;
};
// Each as `linear` does it; x is prepared once for all that round and store alike, and threads wake once.
void linears(const std::vector<Product>& products, const Activations& x);

// One expert, and which tokens visit it: entries [begin, end) of `Visits`.
struct Expert {
    Matrix w1, w3, w2;
    index_t begin, end;
};

// Visits of tokens to experts, each expert's together; a token adds its experts in the order of their entries.
struct Visits {
    std::vector<index_t> token;
    std::vector<float> weight;
};

struct Gate {
    float limit;  // of the clamped SwiGLU
    Rounding rounding;
};

// y [n, D] += sum over a token's visits of w2 (weight * swiglu(w1 x, w3 x)).
void visit_experts(const std::vector<Expert>& experts, const Visits& visits, const Gate& gate, const Activations& x, float* y);

// Experts stacked as the checkpoint has them: which token visits which.
struct Stacks {
    Matrix w1, w3, w2;      // the first of each
    const index_t* places;  // row of the stacks by expert, -1: not there; null: the same number
};

// Tokens [first, first + n) of indices, weights [n, choices] join `visits`, ascending by expert.
void route(const Stacks& stacks, const index_t* indices, const float* weights, index_t n, index_t choices,
           std::vector<Expert>& experts, Visits& visits);

}  // namespace fourfold
