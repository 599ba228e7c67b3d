// The table of one instruction set, from its vectors.
#pragma once

#include "vector_attention.h"
#include "vector_dots.h"
#include "vector_draw.h"
#include "vector_index.h"
#include "vector_streams.h"

namespace fourfold {
namespace {

template <class S>
constexpr VectorKernels vector_table() {
    return {
        .widen = widen<S>,
        .narrow = narrow<S>,
        .rms_norm = rms_norm<S>,
        .rope = rope<S>,
        .hadamard = hadamard<S>,
        .round_fp8 = round_rows<S, Fp8Grid>,
        .round_fp4 = round_rows<S, Fp4Grid>,
        .decode_row = decode_row,
        .pool = pool<S>,
        .dots = dots<S>,
        .mean_square = mean_square<S>,
        .sqrt_softplus = sqrt_softplus<S>,
        .stream_weights = stream_weights<S>,
        .head_weights = head_weights<S>,
        .weighted_sum = weighted_sum<S>,
        .hc_post = hc_post<S>,
        .attend = attend<S>,
        .index_scores = index_scores<S>,
        .spread = spread<S>,
        .race = race<S>,
        .attend_narrow = nullptr,
        .index_scores_narrow = nullptr,
    };
}

}  // namespace
}  // namespace fourfold
