// The part of the DLPack 1.x C interface that we read: how a framework lends a tensor's memory, without
// its headers.  Layout and numbers follow the DLPack standard (dmlc.github.io/dlpack), "C exchange API".
#pragma once

#include <cstdint>

namespace fourfold::dlpack {

enum class Code : std::uint8_t { Int = 0, UInt = 1, Float = 2, Bfloat = 4, E4M3 = 10, E8M0 = 14 };

constexpr std::int32_t kCpu = 1;
constexpr std::uint32_t kMajor = 1;

struct Tensor {
    void* data;
    std::int32_t device_type;
    std::int32_t device_id;
    std::int32_t ndim;
    Code code;
    std::uint8_t bits;
    std::uint16_t lanes;
    std::int64_t* shape;
    std::int64_t* strides;  // in elements
    std::uint64_t byte_offset;
};

struct Exchange {
    std::uint32_t major, minor;
    const Exchange* previous;  // an older major version, or null
    void* allocate;
    void* from_object;
    void* to_object;
    // Borrowed view of a Python tensor, valid while the tensor lives; non-zero with a Python error set.
    int (*view)(void* object, Tensor* out);
    void* current_stream;
};

}  // namespace fourfold::dlpack
