// Manifold-constrained hyper-connections (npu_mhc_pre, npu_mhc_sinkhorn, npu_mhc_post): documented for the 950.
#include "../acl/emulator.h"
#include "entry.h"

using namespace emulator;

static void require_950() { require(soc().aclnn_only, "Ascend 950"); }
static void require_streams(int64_t n) { require(n == 4 || n == 6 || n == 8, "n = 4, 6 or 8"); }
static bool is_half(const Tensor& x) { return x.scalar_type() == at::kBFloat16 || x.scalar_type() == at::kHalf; }

static void mhc_pre(const Tensor& x, const Tensor& phi, const Tensor& alpha, const Tensor& bias, const Tensor& gamma,
                    double norm_eps, double hc_eps, Tensor h_in, Tensor h_post, Tensor h_res, Tensor inv_rms,
                    Tensor h_mix, Tensor h_pre) {
  int64_t n = x.size(-2);
  require_950();
  require_streams(n);
  require(is_half(x), "x of bfloat16 or float16");
  require(x.size(-1) % 16 == 0 && x.size(-1) <= 16384, "a D that 16 divides, at most 16384");
  require(alpha.numel() == 3 && phi.size(0) == n * n + 2 * n, "three alphas and phi [n*n + 2n, nD]");
  if (only_checking()) return;
  Tensor wide = x.to(at::kFloat), flat = wide.flatten(-2);
  Tensor scale = at::rsqrt(flat.square().mean(-1, true) + norm_eps);
  Tensor weighted = gamma.defined() ? flat * gamma.flatten() : flat;
  Tensor mix = at::matmul(weighted, phi.t());
  auto parts = (mix * scale).split_with_sizes({n, n, n * n}, -1);
  auto shifts = bias.split_with_sizes({n, n, n * n});
  Tensor pre = at::sigmoid(parts[0] * alpha[0] + shifts[0]) + hc_eps;
  h_in.copy_((wide * pre.unsqueeze(-1)).sum(-2));
  h_post.copy_(2 * at::sigmoid(parts[1] * alpha[1] + shifts[1]));
  h_res.copy_((parts[2] * alpha[2] + shifts[2]).unflatten(-1, {n, n}));
  if (!inv_rms.defined()) return;
  inv_rms.copy_(scale.squeeze(-1));
  h_mix.copy_(mix);
  h_pre.copy_(pre);
}

LIMITED(MhcPre, (Tensor x, Tensor phi, Tensor alpha, Tensor bias, Tensor gamma, double norm_eps, double hc_eps,
               Tensor h_in, Tensor h_post, Tensor h_res, Tensor inv_rms, Tensor h_mix, Tensor h_pre) {
  mhc_pre(x, phi, alpha, bias, gamma, norm_eps, hc_eps, h_in, h_post, h_res, inv_rms, h_mix, h_pre);
})
LIMITED(MhcPreV2, (Tensor x, Tensor phi, Tensor alpha, Tensor bias, Tensor gamma, double norm_eps, double hc_eps,
                 int64_t, Tensor h_in, Tensor h_post, Tensor h_res, Tensor inv_rms, Tensor h_mix, Tensor h_pre) {
  mhc_pre(x, phi, alpha, bias, gamma, norm_eps, hc_eps, h_in, h_post, h_res, inv_rms, h_mix, h_pre);
})

LIMITED(MhcSinkhorn, (Tensor x, float eps, int64_t iterations, Tensor out, Tensor norms, Tensor sums) {
  require_950();
  require_streams(x.size(-1));
  require(x.scalar_type() == at::kFloat, "float32");
  require(iterations >= 1 && iterations <= 100, "1 to 100 iterations");
  require(!norms.defined() && !sums.defined(), "out_flag 0 in this emulation");
  if (only_checking()) return;
  Tensor m = at::softmax(x, -1) + eps;
  m = m / (m.sum(-2, true) + eps);
  for (int64_t i = 1; i < iterations; ++i) {
    m = m / (m.sum(-1, true) + eps);
    m = m / (m.sum(-2, true) + eps);
  }
  out.copy_(m);
})

LIMITED(MhcPost, (Tensor x, Tensor h_res, Tensor h_out, Tensor h_post, Tensor out) {
  require_950();
  require_streams(x.size(-2));
  require(is_half(x) && h_out.scalar_type() == x.scalar_type(), "x and h_out of bfloat16 or float16");
  require(!h_res.defined() || h_res.scalar_type() == at::kFloat, "h_res of float32");
  if (only_checking()) return;
  Tensor wide = x.to(at::kFloat);
  // Entry (i, j) of h_res leads from stream i to stream j.
  Tensor mixed = h_res.defined() ? at::matmul(h_res.transpose(-1, -2), wide) : wide;
  out.copy_(mixed + h_post.unsqueeze(-1) * h_out.to(at::kFloat).unsqueeze(-2));
})
