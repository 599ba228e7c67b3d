// One operand, element by element; copies and casts.
#include "entry.h"

using namespace emulator;

ENTRY(Abs, (Tensor x, Tensor out) { out.copy_(at::abs(x)); })
ENTRY(Neg, (Tensor x, Tensor out) { out.copy_(at::neg(x)); })
ENTRY(Cos, (Tensor x, Tensor out) { out.copy_(at::cos(x)); })
ENTRY(Sin, (Tensor x, Tensor out) { out.copy_(at::sin(x)); })
ENTRY(Exp, (Tensor x, Tensor out) { out.copy_(at::exp(x)); })
ENTRY(Log, (Tensor x, Tensor out) { out.copy_(at::log(x)); })
ENTRY(Sqrt, (Tensor x, Tensor out) { out.copy_(at::sqrt(x)); })
ENTRY(Rsqrt, (Tensor x, Tensor out) { out.copy_(at::rsqrt(x)); })
ENTRY(Reciprocal, (Tensor x, Tensor out) { out.copy_(at::reciprocal(x)); })
ENTRY(Round, (Tensor x, Tensor out) { out.copy_(at::round(x)); })
ENTRY(Floor, (Tensor x, Tensor out) { out.copy_(at::floor(x)); })
ENTRY(Ceil, (Tensor x, Tensor out) { out.copy_(at::ceil(x)); })
ENTRY(Relu, (Tensor x, Tensor out) { out.copy_(at::relu(x)); })
ENTRY(Silu, (Tensor x, Tensor out) { out.copy_(at::silu(x)); })
ENTRY(Sigmoid, (Tensor x, Tensor out) { out.copy_(at::sigmoid(x)); })
ENTRY(Softplus, (Tensor x, Scalar beta, Scalar threshold, Tensor out) {
  out.copy_(at::softplus(x, beta, threshold));
})
ENTRY(IsFinite, (Tensor x, Tensor out) { out.copy_(at::isfinite(x)); })
ENTRY(BitwiseNot, (Tensor x, Tensor out) { out.copy_(at::bitwise_not(x)); })
ENTRY(LogicalNot, (Tensor x, Tensor out) { out.copy_(at::logical_not(x)); })

ENTRY(Clamp, (Tensor x, MaybeScalar low, MaybeScalar high, Tensor out) { out.copy_(at::clamp(x, low, high)); })
ENTRY(ClampMin, (Tensor x, Scalar low, Tensor out) { out.copy_(at::clamp_min(x, low)); })
ENTRY(ClampMax, (Tensor x, Scalar high, Tensor out) { out.copy_(at::clamp_max(x, high)); })

ENTRY(SWhere, (Tensor condition, Tensor a, Tensor b, Tensor out) { out.copy_(at::where(condition, a, b)); })
ENTRY(InplaceMaskedFillScalar, (Tensor x, Tensor mask, Scalar value) { x.masked_fill_(mask, value); })
ENTRY(InplaceMaskedFillTensor, (Tensor x, Tensor mask, Tensor value) { x.masked_fill_(mask, value); })

ENTRY(InplaceCopy, (Tensor to, Tensor from) { to.copy_(from); })
ENTRY(Cast, (Tensor x, aclDataType, Tensor out) { out.copy_(x); })
ENTRY(NpuFormatCast, (Tensor from, Tensor to) { to.copy_(from); })
