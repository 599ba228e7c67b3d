// Matrix products of floats: float32 sums, whatever the operands, as the cube unit makes them.
#include "entry.h"

using namespace emulator;

static Tensor product(const Tensor& a, const Tensor& b) { return at::matmul(a.to(at::kFloat), b.to(at::kFloat)); }

ENTRY(Mm, (Tensor a, Tensor b, Tensor out, int8_t) { out.copy_(product(a, b)); })
ENTRY(Matmul, (Tensor a, Tensor b, Tensor out, int8_t) { out.copy_(product(a, b)); })
ENTRY(BatchMatMul, (Tensor a, Tensor b, Tensor out, int8_t) { out.copy_(product(a, b)); })
ENTRY(Addmm, (Tensor c, Tensor a, Tensor b, Scalar beta, Scalar alpha, Tensor out, int8_t) {
  out.copy_(at::add(at::mul(c.to(at::kFloat), beta), product(a, b), alpha));
})
ENTRY(Baddbmm, (Tensor c, Tensor a, Tensor b, Scalar beta, Scalar alpha, Tensor out, int8_t) {
  out.copy_(at::add(at::mul(c.to(at::kFloat), beta), product(a, b), alpha));
})

LIMITED(TransposeBatchMatMul, (Tensor a, Tensor b, Tensor bias, Tensor scale, Ints order_a, Ints order_b, Ints order_out,
                             int8_t, int64_t split, Tensor out) {
  require(!bias.defined() && !scale.defined() && split == 1, "no bias, scale or batch_split_factor in this emulation");
  require((order_a == Ints{0, 1, 2} || order_a == Ints{1, 0, 2}) && order_b == Ints{0, 1, 2}, "perm_x2 (0, 1, 2)");
  require(order_out == Ints{1, 0, 2}, "perm_y (1, 0, 2)");
  require(b.size(1) % 16 == 0 && b.size(2) % 16 == 0, "K and N that 16 divides");
  require(b.size(0) * b.size(1) < 65536 || order_a[0] == 0, "K times B below 65536 with perm_x1 (1, 0, 2)");
  if (only_checking()) return;
  out.copy_(product(a.permute(order_a), b).permute(order_out));
})
