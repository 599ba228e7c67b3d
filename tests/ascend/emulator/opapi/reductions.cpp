// Along one or several axes: sums, extrema, softmax, cumulative sums.  No axes at all means all of them.
#include "entry.h"

using namespace emulator;

static Ints axes(const Tensor& x, const Ints& dims) {
  if (!dims.empty()) return dims;
  Ints all(x.dim());
  for (int64_t dim = 0; dim < x.dim(); ++dim) all[dim] = dim;
  return all;
}

ENTRY(ReduceSum, (Tensor x, Ints dims, bool keep, aclDataType, Tensor out) {
  out.copy_(at::sum(x, axes(x, dims), keep, out.scalar_type()));
})
ENTRY(Mean, (Tensor x, Ints dims, bool keep, aclDataType, Tensor out) {
  out.copy_(at::mean(x, axes(x, dims), keep, out.scalar_type()));
})
ENTRY(Amax, (Tensor x, Ints dims, bool keep, Tensor out) { out.copy_(at::amax(x, dims, keep)); })
ENTRY(Amin, (Tensor x, Ints dims, bool keep, Tensor out) { out.copy_(at::amin(x, dims, keep)); })
ENTRY(Max, (Tensor x, Tensor out) { out.copy_(at::max(x)); })
ENTRY(Min, (Tensor x, Tensor out) { out.copy_(at::min(x)); })

static void set(const std::tuple<Tensor, Tensor>& found, const Tensor& values, const Tensor& indices) {
  values.copy_(std::get<0>(found));
  indices.copy_(std::get<1>(found));
}

ENTRY(MaxDim, (Tensor x, int64_t dim, bool keep, Tensor values, Tensor indices) {
  set(at::max(x, dim, keep), values, indices);
})
ENTRY(MinDim, (Tensor x, int64_t dim, bool keep, Tensor values, Tensor indices) {
  set(at::min(x, dim, keep), values, indices);
})
ENTRY(ArgMax, (Tensor x, int64_t dim, bool keep, Tensor out) { out.copy_(at::argmax(x, dim, keep)); })
ENTRY(Any, (Tensor x, Ints dims, bool keep, Tensor out) {
  out.copy_(at::any(x, at::OptionalIntArrayRef(axes(x, dims)), keep));
})
ENTRY(All, (Tensor x, Ints dims, bool keep, Tensor out) {
  out.copy_(at::all(x, at::OptionalIntArrayRef(axes(x, dims)), keep));
})
ENTRY(Cumsum, (Tensor x, int64_t dim, aclDataType, Tensor out) {
  out.copy_(at::cumsum(x, dim, out.scalar_type()));
})
ENTRY(Bincount, (Tensor x, Tensor weights, int64_t least, Tensor out) {
  auto amounts = weights.defined() ? std::optional<Tensor>(weights) : std::nullopt;
  out.copy_(at::bincount(x, amounts, least));
})
ENTRY(Softmax, (Tensor x, int64_t dim, Tensor out) { out.copy_(at::softmax(x, dim)); })
ENTRY(Equal, (Tensor a, Tensor b, Tensor out) { out.fill_(at::equal(a, b)); })

ENTRY(Sort, (Tensor x, bool stable, int64_t dim, bool descending, Tensor values, Tensor indices) {
  set(at::sort(x, stable, dim, descending), values, indices);
})
ENTRY(Argsort, (Tensor x, int64_t dim, bool descending, Tensor out) {
  out.copy_(at::argsort(x, dim, descending));
})
ENTRY(Topk, (Tensor x, int64_t k, int64_t dim, bool largest, bool sorted, Tensor values, Tensor indices) {
  set(at::topk(x, k, dim, largest, sorted), values, indices);
})

// 1000 stands for no axis.
ENTRY(UniqueConsecutive, (Tensor x, bool inverse, bool counts, int64_t dim, Sized y, Tensor places, Sized times) {
  auto axis = dim == 1000 ? std::nullopt : std::optional<int64_t>(dim);
  auto [values, where, repeated] = at::unique_consecutive(x, inverse, counts, axis);
  y.set(values);
  if (inverse) places.copy_(where);
  times.set(repeated);
})
ENTRY(Nonzero, (Tensor x, Sized out) { out.set(at::nonzero(x)); })
ENTRY(NonzeroV2, (Tensor x, Sized out) { out.set(at::nonzero(x).t()); })
