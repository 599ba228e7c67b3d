// Element by element: arithmetic, comparisons, casts and copies.
#include "entry.h"

using namespace emulator;

ENTRY(Add, (Tensor a, Tensor b, Scalar alpha, Tensor out) { out.copy_(at::add(a, b, alpha)); })
ENTRY(Adds, (Tensor a, Scalar b, Scalar alpha, Tensor out) { out.copy_(at::add(a, b, alpha)); })
ENTRY(InplaceAdd, (Tensor a, Tensor b, Scalar alpha) { a.add_(b, alpha); })
ENTRY(InplaceAdds, (Tensor a, Scalar b, Scalar alpha) { a.add_(b, alpha); })
ENTRY(Mul, (Tensor a, Tensor b, Tensor out) { out.copy_(at::mul(a, b)); })
ENTRY(Muls, (Tensor a, Scalar b, Tensor out) { out.copy_(at::mul(a, b)); })
ENTRY(InplaceCopy, (Tensor to, Tensor from) { to.copy_(from); })
ENTRY(Cast, (Tensor x, aclDataType, Tensor out) { out.copy_(x); })
