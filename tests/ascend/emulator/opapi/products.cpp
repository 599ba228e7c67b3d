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
