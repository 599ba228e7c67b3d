// aclTensor, aclScalar and their lists: made by torch_npu before a call, destroyed after it.
#include <stdexcept>

#include "../acl/emulator.h"
#include "entry.h"

struct aclTensor {
  std::vector<int64_t> shape, strides, storage_shape;
  int64_t offset;
  aclDataType type;
  aclFormat format;
  char* data;
};

struct aclScalar {
  at::Scalar value;
};

struct aclTensorList {
  std::vector<const aclTensor*> members;
};

struct aclScalarList {
  std::vector<const aclScalar*> members;
};

struct aclIntArray {
  std::vector<int64_t> values;
};

struct aclBoolArray {
  std::vector<bool> values;
};

struct aclFloatArray {
  std::vector<float> values;
};

namespace emulator {
namespace {

at::ScalarType dtype_of(aclDataType type) {
  switch (type) {
    case ACL_FLOAT: return at::kFloat;
    case ACL_FLOAT16: return at::kHalf;
    case ACL_BF16: return at::kBFloat16;
    case ACL_DOUBLE: return at::kDouble;
    case ACL_BOOL: return at::kBool;
    case ACL_UINT8: return at::kByte;
    case ACL_INT8: return at::kChar;
    case ACL_INT16: return at::kShort;
    case ACL_INT32: return at::kInt;
    case ACL_INT64: return at::kLong;
    case ACL_UINT64: return at::kUInt64;
    case ACL_COMPLEX64: return at::kComplexFloat;
    case ACL_FLOAT8_E4M3FN: return at::kFloat8_e4m3fn;
    case ACL_FLOAT8_E5M2: return at::kFloat8_e5m2;
    case ACL_FLOAT8_E8M0: return at::kFloat8_e8m0fnu;
    case ACL_FLOAT4_E2M1: return at::kFloat4_e2m1fn_x2;
    default: throw std::invalid_argument("the data type " + std::to_string(type) + " is not emulated");
  }
}

bool is_below_16_bits(aclDataType type) { return type >= ACL_HIFLOAT8 && type <= ACL_FLOAT4_E1M2; }

bool is_blocked(aclFormat format) {
  return format == ACL_FORMAT_FRACTAL_NZ || format == ACL_FORMAT_FRACTAL_Z || format >= ACL_FORMAT_FRACTAL_NZ_C0_16;
}

// Blocked weights (NZ) go to the operators that say so in their name, on the 950 to the grouped product alone.
bool takes_blocks(const std::string& name) {
  if (name == "aclnnNpuFormatCast") return true;
  return soc().aclnn_only ? name == "aclnnGroupedMatmulWeightNz" : name.ends_with("WeightNz");
}

void check(const char* name, const aclTensor& tensor, const Tensor& view) {
  if (is_blocked(tensor.format) && !takes_blocks(name)) {
    throw std::invalid_argument("the blocked layout " + std::to_string(tensor.format) + " is not for this operator");
  }
  if (is_below_16_bits(tensor.type) && !soc().has_fp8) {
    throw std::invalid_argument(std::string(at::toString(dtype_of(tensor.type))) + " does not exist on " + soc().name);
  }
  size_t bytes = at::detail::computeStorageNbytes(view.sizes(), view.strides(), view.itemsize());
  if (tensor.type == ACL_FLOAT4_E2M1) bytes /= 2;  // its shape and strides count values, two a byte
  if (!on_device(view.const_data_ptr(), bytes)) {
    throw std::invalid_argument("a tensor does not lie in device memory");
  }
}

}  // namespace

Tensor load(const char* name, const aclTensor* handle) {
  if (!handle) return {};
  at::ScalarType dtype = dtype_of(handle->type);
  char* first = handle->data + handle->offset * c10::elementSize(dtype);
  Tensor view = at::from_blob(first, handle->shape, handle->strides, at::dtype(dtype));
  check(name, *handle, view);
  return view;
}

Tensors load(const char* name, const aclTensorList* handle) {
  Tensors loaded;
  if (!handle) return loaded;
  for (const aclTensor* member : handle->members) loaded.push_back(load(name, member));
  return loaded;
}

MaybeScalar load(const char*, const aclScalar* handle) {
  return handle ? MaybeScalar(handle->value) : std::nullopt;
}

Sized load(const char* name, aclTensor* handle) {
  return {load(name, static_cast<const aclTensor*>(handle)), handle};
}

void Sized::set(const Tensor& value) const {
  room.flatten().narrow(0, 0, value.numel()).copy_(value.flatten());
  handle->shape = value.sizes().vec();
}

Ints load(const char*, const aclIntArray* handle) { return handle ? handle->values : Ints{}; }
Bools load(const char*, const aclBoolArray* handle) { return handle ? handle->values : Bools{}; }

}  // namespace emulator

namespace {

at::Scalar scalar_at(const void* value, aclDataType type) {
  switch (type) {
    case ACL_FLOAT: return *static_cast<const float*>(value);
    case ACL_DOUBLE: return *static_cast<const double*>(value);
    case ACL_FLOAT16: return static_cast<float>(*static_cast<const at::Half*>(value));
    case ACL_BF16: return static_cast<float>(*static_cast<const at::BFloat16*>(value));
    case ACL_INT32: return *static_cast<const int32_t*>(value);
    case ACL_INT64: return *static_cast<const int64_t*>(value);
    case ACL_BOOL: return *static_cast<const bool*>(value);
    default: throw std::invalid_argument("a scalar of data type " + std::to_string(type) + " is not emulated");
  }
}

template <class Handle> int destroy(const Handle* handle) {
  delete handle;
  return 0;
}

}  // namespace

#pragma GCC visibility push(default)
extern "C" {
aclTensor* aclCreateTensor(
    const int64_t* shape, uint64_t dims, aclDataType type, const int64_t* strides, int64_t offset, aclFormat format,
    const int64_t* storage, uint64_t storage_dims, void* data) {
  return new aclTensor{{shape, shape + dims},
                       {strides, strides + dims},
                       {storage, storage + storage_dims},
                       offset,
                       type,
                       format,
                       static_cast<char*>(data)};
}

// The caller frees the shape with delete[].
int aclGetViewShape(const aclTensor* handle, int64_t** shape, uint64_t* dims) {
  *dims = handle->shape.size();
  *shape = new int64_t[*dims];
  std::copy(handle->shape.begin(), handle->shape.end(), *shape);
  return 0;
}

// The layout NZ is [.., N/n, K/16, 16, n] with 32 bytes of n; here it is a mark, and values stay in order.
int aclnnNpuFormatCastCalculateSizeAndFormat(
    const aclTensor* from, int format, int, int64_t** shape, uint64_t* dims, int* actual) {
  std::vector<int64_t> blocks = from->shape;
  if (format == ACL_FORMAT_FRACTAL_NZ) {
    int64_t width = 32 / static_cast<int64_t>(c10::elementSize(emulator::dtype_of(from->type)));
    int64_t columns = blocks.back(), rows = blocks[blocks.size() - 2];
    blocks.resize(blocks.size() - 2);
    blocks.insert(blocks.end(), {(columns + width - 1) / width, (rows + 15) / 16, 16, width});
  }
  *actual = format;
  *dims = blocks.size();
  *shape = new int64_t[*dims];
  std::copy(blocks.begin(), blocks.end(), *shape);
  return 0;
}

aclScalar* aclCreateScalar(void* value, aclDataType type) { return new aclScalar{scalar_at(value, type)}; }
aclIntArray* aclCreateIntArray(const int64_t* values, uint64_t size) {
  return new aclIntArray{{values, values + size}};
}
aclBoolArray* aclCreateBoolArray(const bool* values, uint64_t size) {
  return new aclBoolArray{std::vector<bool>(values, values + size)};
}
aclFloatArray* aclCreateFloatArray(const float* values, uint64_t size) {
  return new aclFloatArray{{values, values + size}};
}
aclTensorList* aclCreateTensorList(const aclTensor* const* members, uint64_t size) {
  return new aclTensorList{{members, members + size}};
}
aclScalarList* aclCreateScalarList(const aclScalar* const* members, uint64_t size) {
  return new aclScalarList{{members, members + size}};
}

int aclDestroyTensor(const aclTensor* handle) { return destroy(handle); }
int aclDestroyScalar(const aclScalar* handle) { return destroy(handle); }
int aclDestroyIntArray(const aclIntArray* handle) { return destroy(handle); }
int aclDestroyBoolArray(const aclBoolArray* handle) { return destroy(handle); }
int aclDestroyFloatArray(const aclFloatArray* handle) { return destroy(handle); }
int aclDestroyAclOpExecutor(aclOpExecutor* handle) { return destroy(handle); }

int aclDestroyTensorList(const aclTensorList* handle) {
  for (const aclTensor* member : handle->members) destroy(member);
  return destroy(handle);
}

int aclDestroyScalarList(const aclScalarList* handle) {
  for (const aclScalar* member : handle->members) destroy(member);
  return destroy(handle);
}
}
#pragma GCC visibility pop
