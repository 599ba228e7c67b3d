// How an entry point of libopapi is declared:
//
//   ENTRY(Add, (Tensor a, Tensor b, Scalar alpha, Tensor out) { out.copy_(at::add(a, b, alpha)); })
//
// gives aclnnAddGetWorkspaceSize and aclnnAdd their C signatures, with aclTensor* for Tensor, aclScalar* for
// Scalar, aclIntArray* for Ints and so on.  Arguments are converted in the first call; the body runs in the
// second, or each time a captured graph is replayed.  A missing tensor is undefined.
//
// LIMITED instead of ENTRY: the operator's documentation has limits.  Its body begins with them, and they are
// tested in the first call, as CANN does: `require(…); if (only_checking()) return;`.

#ifndef FOURFOLD_EMULATOR_ENTRY_H
#define FOURFOLD_EMULATOR_ENTRY_H

#include <ATen/ATen.h>
#include <acl/acl_base.h>

#include <functional>
#include <optional>
#include <stdexcept>
#include <string>
#include <type_traits>
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
using MaybeScalar = std::optional<Scalar>;

// An output whose size only the values tell: room for the largest, and the handle that learns the shape.
struct Sized {
  Tensor room;
  aclTensor* handle;
  void set(const Tensor& value) const;
};

// An argument of entry point `name`; each ends in an exception where the chip cannot have it.
Tensor load(const char* name, const aclTensor* handle);
Tensors load(const char* name, const aclTensorList* handle);
MaybeScalar load(const char* name, const aclScalar* handle);
Ints load(const char* name, const aclIntArray* handle);
Sized load(const char* name, aclTensor* handle);
Bools load(const char* name, const aclBoolArray* handle);
inline Text load(const char*, const char* text) { return text ? text : ""; }
template <class T> T load(const char*, T value) { return value; }

template <class T> struct CType { using type = T; };
template <> struct CType<Tensor> { using type = const aclTensor*; };
template <> struct CType<Tensors> { using type = const aclTensorList*; };
template <> struct CType<Sized> { using type = aclTensor*; };
template <> struct CType<Scalar> { using type = const aclScalar*; };
template <> struct CType<MaybeScalar> { using type = const aclScalar*; };
template <> struct CType<Ints> { using type = const aclIntArray*; };
template <> struct CType<Bools> { using type = const aclBoolArray*; };
template <> struct CType<Text> { using type = const char*; };

// Ends the call with an error where an operator's documentation does not allow the argument.
inline void require(bool allowed, const char* what) {
  if (!allowed) throw std::invalid_argument(std::string("its documentation allows: ") + what);
}

// True while the body is called for its limits alone; no value may be read.
bool only_checking();

// Calls `body` so.
void check(const std::function<void()>& body);

// What the C functions do; 161002 is CANN's code for arguments that an operator does not take.
constexpr int kInvalidArgument = 161002;
int refuse(const char* name, const std::exception& why);
int run(aclOpExecutor* executor, void* stream);

// A scalar that must be there is the only argument whose loaded type is not the body's.
template <class T, class Loaded> T required(Loaded loaded) {
  if constexpr (std::is_same_v<T, Scalar>) {
    if (!loaded) throw std::invalid_argument("a scalar is missing");
    return *loaded;
  } else {
    return loaded;
  }
}

template <const char* Name, bool Limited, auto Body, class = decltype(Body)> struct Entry;

template <const char* Name, bool Limited, auto Body, class... Arguments>
struct Entry<Name, Limited, Body, void (*)(Arguments...)> {
  static int prepare(typename CType<Arguments>::type... handles, uint64_t* workspace, aclOpExecutor** executor) {
    try {
      auto work = [... arguments = required<Arguments>(load(Name, handles))] { Body(arguments...); };
      if constexpr (Limited) check(work);
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
#define DECLARE(NAME, IS_LIMITED, ...)                                                                    \
  static void NAME##_body __VA_ARGS__                                                                     \
  static constexpr char NAME##_name[] = "aclnn" #NAME;                                                    \
  using NAME##_entry = emulator::Entry<NAME##_name, IS_LIMITED, &NAME##_body>;                            \
  extern "C" void* NAME##_prepare() { return reinterpret_cast<void*>(&NAME##_entry::prepare); }           \
  extern "C" void* NAME##_execute() { return reinterpret_cast<void*>(&NAME##_entry::execute); }           \
  EXPORTED(aclnn##NAME##GetWorkspaceSize, #NAME "_prepare")                                               \
  EXPORTED(aclnn##NAME, #NAME "_execute")

#define ENTRY(NAME, ...) DECLARE(NAME, false, __VA_ARGS__)
#define LIMITED(NAME, ...) DECLARE(NAME, true, __VA_ARGS__)

#endif
