// The old operator path (aclop): descriptors can be built, nothing can be run.
//
// torch_npu takes it where libopapi lacks an aclnn entry point.  An operator that our model needs is emulated
// as aclnn, so whatever arrives here names what is missing.
#include <acl/acl.h>
#include <acl/acl_op_compiler.h>

#include <cstdlib>
#include <string>
#include <vector>

#include "emulator.h"

namespace {

struct Description {
  aclDataType type;
  std::vector<int64_t> shape;
  aclFormat format;
};

const Description* description_of(const aclTensorDesc* handle) {
  return reinterpret_cast<const Description*>(handle);
}

}  // namespace

extern "C" {
aclTensorDesc* aclCreateTensorDesc(aclDataType type, int dims, const int64_t* shape, aclFormat format) {
  return reinterpret_cast<aclTensorDesc*>(new Description{type, {shape, shape + dims}, format});
}

void aclDestroyTensorDesc(const aclTensorDesc* handle) { delete description_of(handle); }

aclError aclGetTensorDescDimV2(const aclTensorDesc* handle, size_t dim, int64_t* size) {
  *size = description_of(handle)->shape[dim];
  return ACL_SUCCESS;
}

aclFormat aclGetTensorDescFormat(const aclTensorDesc* handle) { return description_of(handle)->format; }
size_t aclGetTensorDescNumDims(const aclTensorDesc* handle) { return description_of(handle)->shape.size(); }
aclDataType aclGetTensorDescType(const aclTensorDesc* handle) { return description_of(handle)->type; }
void aclSetTensorDescName(aclTensorDesc*, const char*) {}
aclError aclSetTensorFormat(aclTensorDesc*, aclFormat) { return ACL_SUCCESS; }
aclError aclSetTensorPlaceMent(aclTensorDesc*, aclMemType) { return ACL_SUCCESS; }
aclError aclSetTensorShape(aclTensorDesc*, int, const int64_t*) { return ACL_SUCCESS; }

// Buffers and attributes are handles that nothing ever looks into.
aclDataBuffer* aclCreateDataBuffer(void*, size_t) { return static_cast<aclDataBuffer*>(malloc(1)); }

aclError aclDestroyDataBuffer(const aclDataBuffer* buffer) {
  free(const_cast<aclDataBuffer*>(buffer));
  return ACL_SUCCESS;
}

aclopAttr* aclopCreateAttr() { return static_cast<aclopAttr*>(malloc(1)); }
void aclopDestroyAttr(const aclopAttr* attribute) { free(const_cast<aclopAttr*>(attribute)); }
aclError aclopSetAttrBool(aclopAttr*, const char*, uint8_t) { return ACL_SUCCESS; }
aclError aclopSetAttrDataType(aclopAttr*, const char*, aclDataType) { return ACL_SUCCESS; }
aclError aclopSetAttrFloat(aclopAttr*, const char*, float) { return ACL_SUCCESS; }
aclError aclopSetAttrInt(aclopAttr*, const char*, int64_t) { return ACL_SUCCESS; }
aclError aclopSetAttrListBool(aclopAttr*, const char*, int, const uint8_t*) { return ACL_SUCCESS; }
aclError aclopSetAttrListFloat(aclopAttr*, const char*, int, const float*) { return ACL_SUCCESS; }
aclError aclopSetAttrListInt(aclopAttr*, const char*, int, const int64_t*) { return ACL_SUCCESS; }
aclError aclopSetAttrListListInt(aclopAttr*, const char*, int, const int*, const int64_t* const[]) {
  return ACL_SUCCESS;
}
aclError aclopSetAttrString(aclopAttr*, const char*, const char*) { return ACL_SUCCESS; }

aclError aclopCompileAndExecute(
    const char* name, int, const aclTensorDesc* const[], const aclDataBuffer* const[], int,
    const aclTensorDesc* const[], aclDataBuffer* const[], const aclopAttr*, aclopEngineType, aclopCompileType,
    const char*, aclrtStream) {
  return emulator::fail(
      ACL_ERROR_OP_NOT_FOUND, std::string("the aclop operator ") + name + " is not emulated; write its aclnn entry");
}

// The long signature is the one that torch_npu calls where it finds it.
aclError aclopCompileAndExecuteV2(
    const char* name, int inputs, aclTensorDesc*[], aclDataBuffer*[], int outputs, aclTensorDesc*[],
    aclDataBuffer*[], aclopAttr*, aclopEngineType, aclopCompileType, const char*, aclrtStream) {
  return aclopCompileAndExecute(
      name, inputs, nullptr, nullptr, outputs, nullptr, nullptr, nullptr, ACL_ENGINE_SYS, ACL_COMPILE_SYS,
      nullptr, nullptr);
}

aclError aclSetCompileopt(aclCompileOpt, const char*) { return ACL_SUCCESS; }
size_t aclGetCompileoptSize(aclCompileOpt) { return 64; }

aclError aclGetCompileopt(aclCompileOpt, char* value, size_t size) {
  if (size) value[0] = '\0';
  return ACL_SUCCESS;
}
}
