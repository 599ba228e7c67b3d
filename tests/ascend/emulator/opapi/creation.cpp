// Tensors from nothing, and from other tensors side by side.
#include "entry.h"

using namespace emulator;

ENTRY(Arange, (Scalar start, Scalar end, Scalar step, Tensor out) {
  out.copy_(at::arange(start, end, step, out.options()));
})
ENTRY(InplaceFillScalar, (Tensor x, Scalar value) { x.fill_(value); })
ENTRY(InplaceFillTensor, (Tensor x, Tensor value) { x.fill_(value); })
ENTRY(InplaceZero, (Tensor x) { x.zero_(); })
ENTRY(InplaceOne, (Tensor x) { x.fill_(1); })
ENTRY(Cat, (Tensors parts, int64_t dim, Tensor out) { out.copy_(at::cat(parts, dim)); })
ENTRY(Stack, (Tensors parts, int64_t dim, Tensor out) { out.copy_(at::stack(parts, dim)); })
ENTRY(ConstantPadNd, (Tensor x, Ints pad, Scalar value, Tensor out) {
  out.copy_(at::constant_pad_nd(x, pad, value));
})
ENTRY(Tril, (Tensor x, int64_t diagonal, Tensor out) { out.copy_(at::tril(x, diagonal)); })
ENTRY(Triu, (Tensor x, int64_t diagonal, Tensor out) { out.copy_(at::triu(x, diagonal)); })
ENTRY(Roll, (Tensor x, Ints shifts, Ints dims, Tensor out) { out.copy_(at::roll(x, shifts, dims)); })
ENTRY(Flip, (Tensor x, Ints dims, Tensor out) { out.copy_(at::flip(x, dims)); })

static Tensor repeated(const Tensor& x, const Tensor& repeats) {
  return at::repeat_interleave(x, repeats.to(at::kLong), std::nullopt);
}

ENTRY(RepeatInterleave, (Tensor x, Tensor repeats, int64_t, Tensor out) { out.copy_(repeated(x, repeats)); })
ENTRY(RepeatInterleaveWithDim, (Tensor x, Tensor repeats, int64_t dim, int64_t, Tensor out) {
  out.copy_(at::repeat_interleave(x, repeats.to(at::kLong), dim));
})
ENTRY(RepeatInterleaveTensor, (Tensor repeats, int64_t, Tensor out) {
  out.copy_(repeated(at::arange(repeats.numel()), repeats));
})
ENTRY(RepeatInterleaveInt, (Tensor x, int64_t repeats, int64_t, Tensor out) {
  out.copy_(at::repeat_interleave(x, repeats));
})
ENTRY(RepeatInterleaveIntWithDim, (Tensor x, int64_t repeats, int64_t dim, int64_t, Tensor out) {
  out.copy_(at::repeat_interleave(x, repeats, dim));
})
