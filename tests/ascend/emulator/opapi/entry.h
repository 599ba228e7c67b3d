// How an entry point of libopapi is declared:
//
//   ENTRY(Add, (Tensor a, Tensor b, Scalar alpha, Tensor out) { out.copy_(at::add(a, b, alpha)); })
//
// gives aclnnAddGetWorkspaceSize and aclnnAdd their C signatures, with aclTensor* for Tensor, aclScalar* for
// Scalar, aclIntArray* for Ints and so on.  Arguments are converted and checked in the first call; the body
// runs in the second, or each time a captured graph is replayed.  A missing tensor is undefined.

#ifndef FOURFOLD_EMULATOR_ENTRY_H
#define FOURFOLD_EMULATOR_ENTRY_H

#include <ATen/ATen.h>
#include <acl/acl_base.h>

#include <functional>
#include <string>
#include <utility>
#include <vector>

struct aclTensor;
struct aclScalar;
struct aclTensorList;
struct aclScalarList;
struct aclIntArray;
struct aclBoolArray;
struct aclFloatArray;

struct aclOpExecutor {
  std::function<void()> work;
  const char* name;
};

namespace emulator {

using at::Scalar;
using at::Tensor;
using Tensors = std::vector<Tensor>;
using Ints = std::vector<int64_t>;
using Bools = std::vector<bool>;
using Text = std::string;

// An argument of entry point `name`; each ends in an exception where the chip cannot have it.
Tensor load(const char* name, const aclTensor* handle);
Tensors load(const char* name, const aclTensorList* handle);
Scalar load(const char* name, const aclScalar* handle);
Ints load(const char* name, const aclIntArray* handle);
Bools load(const char* name, const aclBoolArray* handle);
inline Text load(const char*, const char* text) { return text ? text : ""; }
inline int64_t load(const char*, int64_t value) { return value; }
inline double load(const char*, double value) { return value; }
inline float load(const char*, float value) { return value; }
inline bool load(const char*, bool value) { return value; }
inline int8_t load(const char*, int8_t value) { return value; }
inline aclDataType load(const char*, aclDataType value) { return value; }

template <class T> struct CType { using type = T; };
template <> struct CType<Tensor> { using type = const aclTensor*; };
template <> struct CType<Tensors> { using type = const aclTensorList*; };
template <> struct CType<Scalar> { using type = const aclScalar*; };
template <> struct CType<Ints> { using type = const aclIntArray*; };
template <> struct CType<Bools> { using type = const aclBoolArray*; };
template <> struct CType<Text> { using type = const char*; };

// What the C functions do; 161002 is CANN's code for arguments that an operator does not take.
constexpr int kInvalidArgument = 161002;
int refuse(const char* name, const std::exception& why);
int run(aclOpExecutor* executor, void* stream);

template <const char* Name, auto Body, class = decltype(Body)> struct Entry;

template <const char* Name, auto Body, class... Arguments> struct Entry<Name, Body, void (*)(Arguments...)> {
  static int prepare(typename CType<Arguments>::type... handles, uint64_t* workspace, aclOpExecutor** executor) {
    try {
      auto work = [... arguments = load(Name, handles)] { Body(arguments...); };
      *workspace = 0;
      *executor = new aclOpExecutor{work, Name};
      return 0;
    } catch (const std::exception& why) {
      return refuse(Name, why);
    }
  }

  static int execute(void*, uint64_t, aclOpExecutor* executor, void* stream) { return run(executor, stream); }
};

}  // namespace emulator

#define EXPORTED(FUNCTION, RESOLVER)                     \
  extern "C" __attribute__((visibility("default"))) void \
  FUNCTION() __attribute__((ifunc(RESOLVER)));

// Both names are exported as indirect functions, so that their C signatures follow from the body's.
#define ENTRY(NAME, ...)                                                                                  \
  static void NAME##_body __VA_ARGS__                                                                     \
  static constexpr char NAME##_name[] = "aclnn" #NAME;                                                    \
  using NAME##_entry = emulator::Entry<NAME##_name, &NAME##_body>;                                        \
  extern "C" void* NAME##_prepare() { return reinterpret_cast<void*>(&NAME##_entry::prepare); }           \
  extern "C" void* NAME##_execute() { return reinterpret_cast<void*>(&NAME##_entry::execute); }           \
  EXPORTED(aclnn##NAME##GetWorkspaceSize, #NAME "_prepare")                                               \
  EXPORTED(aclnn##NAME, #NAME "_execute")

#endif
