// A tensor argument of a function of the Python module, borrowed for the call.
#pragma once

#include <nanobind/nanobind.h>

#include <string>

#include "dlpack.h"
#include "tensor_ops.h"

namespace nb = nanobind;

namespace fourfold {

extern PyTypeObject* g_tensor_type;  // torch.Tensor, kept for the life of the process
extern const dlpack::Exchange* g_exchange;

enum class Layout {
    Contiguous,
    Rows,  // contiguous along the last dimension
};

inline index_t size_of(const dlpack::Tensor& t) {
    index_t n = 1;
    for (int i = 0; i < t.ndim; ++i) n *= t.shape[i];
    return n;
}

// Whether the dimensions from `first` on lie without gaps.
inline bool gapless(const dlpack::Tensor& t, int first) {
    const bool empty = size_of(t) == 0;
    index_t expected = 1;
    for (int i = t.ndim - 1; i >= first; expected *= t.shape[i--])
        if (!empty && t.shape[i] != 1 && t.strides[i] != expected) return false;
    return true;
}

struct Argument : dlpack::Tensor {
    const char* name;

    Argument(nb::handle object, const char* name, Layout layout = Layout::Contiguous) : name(name) {
        if (!g_exchange) throw nb::value_error("bind(torch.Tensor) first");
        if (!PyObject_TypeCheck(object.ptr(), g_tensor_type))
            throw nb::type_error((std::string(name) + " is not a tensor").c_str());
        if (g_exchange->view(object.ptr(), this) != 0) throw nb::python_error();
        check(device_type == dlpack::kCpu, "is not in CPU memory");
        if (layout == Layout::Contiguous)
            check(gapless(*this, 0), "is not contiguous");
        else
            check(ndim >= 1 && gapless(*this, ndim - 1), "has rows that are not contiguous");
    }

    void check(bool good, const char* complaint) const {
        if (!good) throw nb::value_error((std::string(name) + " " + complaint).c_str());
    }
    bool is(dlpack::Code c, int width) const { return code == c && bits == width; }
    index_t size() const { return size_of(*this); }
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
};

// What an Argument would complain about, asked first: a tensor may be none of ours, then the reference takes it.
struct Glance : dlpack::Tensor {
    bool ours = false;  // on the CPU, its rows contiguous

    explicit Glance(nb::handle object) {
        if (!PyObject_TypeCheck(object.ptr(), g_tensor_type)) return;
        if (g_exchange->view(object.ptr(), this) != 0) {
            PyErr_Clear();  // of a type that cannot be lent
            return;
        }
        ours = device_type == dlpack::kCpu && ndim >= 1 && fourfold::gapless(*this, ndim - 1);
    }
    bool is(dlpack::Code c, int width) const { return ours && code == c && bits == width; }
    bool f32() const { return is(dlpack::Code::Float, 32); }
    bool floats() const { return f32() || is(dlpack::Code::Bfloat, 16); }
    bool gapless() const { return ours && fourfold::gapless(*this, 0); }
    bool some() const { return size_of(*this) > 0; }
};

// The arguments of sparse attention but its result, checked; the tensors lend their memory for the call.
struct AttentionArguments {
    nb::handle window, window_range, entries, entry_range, entry_index, sink;
    float scale;
    bool round;
};
// Queries [batch, tokens, heads, width], one row a head.
struct Queries {
    Rows rows;
    index_t batch, tokens, heads, width;
};
Queries queries_of(const Argument& q);
Attention attention_of(const Queries& q, const AttentionArguments& a);
bool attends(const AttentionArguments& a);  // whether we can, with queries of ours

// The operations of tensor_ops.h and composed_ops.h as functions of the module.
void add_tensor_ops(nb::module_& m);
void add_composed_ops(nb::module_& m);

}  // namespace fourfold
