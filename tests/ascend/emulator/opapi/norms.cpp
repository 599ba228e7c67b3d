// Fused norms, activations and rotary embeddings (npu_rms_norm, npu_swiglu, npu_rotary_mul).
#include "entry.h"

using namespace emulator;

ENTRY(RmsNorm, (Tensor x, Tensor gamma, double eps, Tensor y, Tensor rstd) {
  Tensor wide = x.to(at::kFloat);
  Tensor scale = at::rsqrt(wide.square().mean(-1, true) + eps);
  y.copy_(wide * scale * gamma.to(at::kFloat));
  if (rstd.defined()) rstd.copy_(scale.view(rstd.sizes()));
})

ENTRY(SwiGlu, (Tensor x, int64_t dim, Tensor out) {
  auto halves = x.to(at::kFloat).chunk(2, dim);
  out.copy_(at::silu(halves[0]) * halves[1]);
})

LIMITED(ClippedSwiglu, (Tensor x, Tensor group_index, int64_t dim, double alpha, double limit, double bias,
                      bool interleaved, Tensor out) {
  require(!group_index.defined(), "no group_index in this emulation");
  if (only_checking()) return;
  Tensor wide = x.to(at::kFloat), gate, up;
  if (interleaved) {
    gate = wide.slice(dim, 0, std::nullopt, 2);
    up = wide.slice(dim, 1, std::nullopt, 2);
  } else {
    auto halves = wide.chunk(2, dim);
    gate = halves[0];
    up = halves[1];
  }
  gate = gate.clamp_max(limit);
  out.copy_(gate * at::sigmoid(gate * alpha) * (up.clamp(-limit, limit) + bias));
})

static Tensor turned(const Tensor& x, int64_t mode) {
  if (mode == 1) {  // interleaved: pairs of neighbours
    Tensor pairs = x.unflatten(-1, {-1, 2});
    return at::stack({-pairs.select(-1, 1), pairs.select(-1, 0)}, -1).flatten(-2);
  }
  auto halves = x.chunk(2, -1);
  return at::cat({-halves[1], halves[0]}, -1);
}

LIMITED(RotaryPositionEmbedding, (Tensor x, Tensor cos, Tensor sin, int64_t mode, Tensor out) {
  require(x.dim() == 3 || x.dim() == 4, "an input of 3 or 4 axes");
  require(cos.dim() == x.dim() && sin.dim() == x.dim(), "cos and sin of as many axes as the input");
  require(x.size(-1) < 896 && x.size(-1) % 2 == 0, "an even D below 896");
  require(mode == 0 || mode == 1, "rotary_mode half or interleave");
  if (mode == 1) {
    bool shared_heads = cos.size(-2) == 1 || (x.dim() == 4 && cos.size(1) == 1);
    require(shared_heads, "in interleave mode cos and sin that all heads share (11SD, 1S1D, S11D, T1D)");
    require(x.dim() == 3 || x.size(0) == 1 || cos.size(0) == 1 || cos.size(1) == 1,
            "in interleave mode cos and sin that the batch shares");
  }
  if (only_checking()) return;
  Tensor wide = x.to(at::kFloat);
  out.copy_(wide * cos.to(at::kFloat) + turned(wide, mode) * sin.to(at::kFloat));
})
