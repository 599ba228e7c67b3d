// Gathers and scatters.  The device checks no index; here torch's CPU does, and an index out of bounds fails.
#include "entry.h"

using namespace emulator;

// An axis without an index comes as an empty tensor, or as none.
static c10::List<std::optional<Tensor>> indices_of(const Tensors& given) {
  c10::List<std::optional<Tensor>> indices;
  for (const Tensor& index : given) {
    bool present = index.defined() && index.numel();
    indices.push_back(present ? std::optional<Tensor>(index) : std::nullopt);
  }
  return indices;
}

ENTRY(Index, (Tensor x, Tensors indices, Tensor out) {
  if (out.numel()) out.copy_(at::index(x, indices_of(indices)));
})
ENTRY(IndexPutImpl, (Tensor x, Tensors indices, Tensor values, bool accumulate, bool) {
  if (values.numel()) x.index_put_(indices_of(indices), values, accumulate);
})
ENTRY(IndexSelect, (Tensor x, int64_t dim, Tensor index, Tensor out) { out.copy_(at::index_select(x, dim, index)); })
ENTRY(IndexAdd, (Tensor x, int64_t dim, Tensor index, Tensor source, Scalar alpha, Tensor out) {
  out.copy_(at::index_add(x, dim, index, source, alpha));
})
ENTRY(InplaceIndexCopy, (Tensor x, int64_t dim, Tensor index, Tensor source) { x.index_copy_(dim, index, source); })
ENTRY(InplaceIndexFill, (Tensor x, int64_t dim, Tensor index, Scalar value) { x.index_fill_(dim, index, value); })
ENTRY(Embedding, (Tensor weight, Tensor indices, Tensor out) { out.copy_(at::embedding(weight, indices)); })
ENTRY(Gather, (Tensor x, int64_t dim, Tensor index, Tensor out) { out.copy_(at::gather(x, dim, index.to(at::kLong))); })

static void scattered(Tensor x, int64_t dim, const Tensor& index, const Tensor& source, int64_t reduction) {
  if (reduction == 1) {
    x.scatter_add_(dim, index, source);
  } else if (reduction == 2) {
    x.scatter_(dim, index, source, "multiply");
  } else {
    x.scatter_(dim, index, source);
  }
}

static Tensor spread(const Scalar& value, const Tensor& index, const Tensor& like) {
  return at::full_like(index, value, like.options());
}

ENTRY(Scatter, (Tensor x, int64_t dim, Tensor index, Tensor source, int64_t reduction, Tensor out) {
  out.copy_(x);
  scattered(out, dim, index, source, reduction);
})
ENTRY(ScatterValue, (Tensor x, int64_t dim, Tensor index, Scalar value, int64_t reduction, Tensor out) {
  out.copy_(x);
  scattered(out, dim, index, spread(value, index, x), reduction);
})
ENTRY(InplaceScatter, (Tensor x, int64_t dim, Tensor index, Tensor source, int64_t reduction) {
  scattered(x, dim, index, source, reduction);
})
ENTRY(InplaceScatterValue, (Tensor x, int64_t dim, Tensor index, Scalar value, int64_t reduction) {
  scattered(x, dim, index, spread(value, index, x), reduction);
})
ENTRY(ScatterAdd, (Tensor x, int64_t dim, Tensor index, Tensor source, Tensor out) {
  out.copy_(at::scatter_add(x, dim, index, source));
})

// indices [..., D] are the first D coordinates of what each update replaces.
LIMITED(ScatterNdUpdate, (Tensor x, Tensor indices, Tensor updates) {
  require(indices.scalar_type() == at::kInt || indices.scalar_type() == at::kLong, "indices of int32 or int64");
  if (only_checking()) return;
  c10::List<std::optional<Tensor>> coordinates;
  for (const Tensor& axis : indices.to(at::kLong).unbind(-1)) coordinates.push_back(axis);
  x.index_put_(coordinates, updates);
})
