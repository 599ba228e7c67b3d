// A tensor argument of a function of the Python module, borrowed for the call.
#pragma once

#include <nanobind/nanobind.h>

#include <string>

#include "dlpack.h"
#include "vector.h"

namespace nb = nanobind;

namespace fourfold {

extern PyTypeObject* g_tensor_type;  // torch.Tensor, kept for the life of the process
extern const dlpack::Exchange* g_exchange;

enum class Layout {
    Contiguous,
    Rows,  // contiguous along the last dimension
};

struct Argument : dlpack::Tensor {
    const char* name;

    Argument(nb::handle object, const char* name, Layout layout = Layout::Contiguous) : name(name) {
        if (!g_exchange) throw nb::value_error("bind(torch.Tensor) first");
        if (!PyObject_TypeCheck(object.ptr(), g_tensor_type))
            throw nb::type_error((std::string(name) + " is not a tensor").c_str());
        if (g_exchange->view(object.ptr(), this) != 0) throw nb::python_error();
        check(device_type == dlpack::kCpu, "is not in CPU memory");
        if (layout == Layout::Contiguous)
            check(gapless_from(0), "is not contiguous");
        else
            check(ndim >= 1 && gapless_from(ndim - 1), "has rows that are not contiguous");
    }

    void check(bool good, const char* complaint) const {
        if (!good) throw nb::value_error((std::string(name) + " " + complaint).c_str());
    }
    bool is(dlpack::Code c, int width) const { return code == c && bits == width; }
    index_t size() const {
        index_t n = 1;
        for (int i = 0; i < ndim; ++i) n *= shape[i];
        return n;
    }
    index_t last() const { return shape[ndim - 1]; }
    template <class T>
    T* as(dlpack::Code c) const {
        check(is(c, 8 * sizeof(T)), "has the wrong dtype");
        return reinterpret_cast<T*>(static_cast<char*>(data) + byte_offset);
    }
    const float* floats() const { return as<const float>(dlpack::Code::Float); }
    const index_t* integers() const { return as<const index_t>(dlpack::Code::Int); }
    const std::uint8_t* bytes() const { return static_cast<const std::uint8_t*>(data) + byte_offset; }
    void* memory() const { return static_cast<char*>(data) + byte_offset; }

    Type type() const {
        const bool half = is(dlpack::Code::Bfloat, 16);
        check(half || is(dlpack::Code::Float, 32), "is neither float32 nor bfloat16");
        return half ? Type::Bf16 : Type::F32;
    }
    // All dimensions but the last as one: the distance between rows must be the same everywhere.
    Rows rows() const {
        index_t stride = last(), expected = -1;
        for (int i = ndim - 2; i >= 0; --i) {
            if (shape[i] == 1) continue;
            if (expected < 0) stride = expected = strides[i];
            check(size() == 0 || strides[i] == expected, "has rows at uneven distances");
            expected *= shape[i];
        }
        return {memory(), type(), stride};
    }

private:
    bool gapless_from(int dimension) const {
        const bool empty = size() == 0;
        index_t expected = 1;
        for (int i = ndim - 1; i >= dimension; expected *= shape[i--])
            if (!empty && shape[i] != 1 && strides[i] != expected) return false;
        return true;
    }
};

// The operations of tensor_ops.h as functions of the module.
void add_tensor_ops(nb::module_& m);

}  // namespace fourfold
