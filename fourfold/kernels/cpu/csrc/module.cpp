// The Python module fourfold.kernels.cpu._native: checks tensors, lets go of the GIL, calls ops.h.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <string>

#include "argument.h"
#include "isa.h"
#include "ops.h"
#include "thread_pool.h"

namespace nb = nanobind;

namespace fourfold {

PyTypeObject* g_tensor_type = nullptr;
const dlpack::Exchange* g_exchange = nullptr;

namespace {

// Learn how torch lends memory.  False: this torch has no exchange interface that we know.
bool bind(nb::handle tensor_type) {
    nb::object capsule = nb::getattr(tensor_type, "__dlpack_c_exchange_api__", nb::none());
    if (capsule.is_none()) return false;
    auto* api = static_cast<const dlpack::Exchange*>(
        PyCapsule_GetPointer(capsule.ptr(), "dlpack_exchange_api"));
    if (!api) throw nb::python_error();
    while (api && api->major != dlpack::kMajor) api = api->previous;
    if (!api || !api->view) return false;
    g_exchange = api;
    g_tensor_type = reinterpret_cast<PyTypeObject*>(tensor_type.inc_ref().ptr());
    return true;
}

// weight [count, rows, columns] or [count * rows, columns] with its scale, `count` matrices in all.
Matrix matrix(const Argument& weight, const Argument& scale, index_t count) {
    using dlpack::Code;
    Matrix m{};
    weight.check(weight.ndim >= 2, "has fewer than two dimensions");
    const bool fp4 = weight.is(Code::Int, 8);
    weight.check(fp4 || weight.is(Code::E4M3, 8), "is neither FP4 (int8) nor FP8 (float8_e4m3fn)");
    m.format = fp4 ? Format::Fp4 : Format::Fp8;
    m.columns = weight.last() * (fp4 ? 2 : 1);
    weight.check(!fp4 || m.columns % kFp4Group == 0, "has columns that are no multiple of 32");
    const index_t rows = m.columns ? weight.size() / weight.last() : 0;
    weight.check(count > 0 && rows % count == 0, "does not divide into its groups");
    m.rows = rows / count;
    weight.check(fp4 || count == 1 || weight.ndim == 3 || m.rows % kFp8Block == 0,
                 "has groups that share rows of scales");
    m.float_scale = scale.is(Code::Float, 32);
    scale.check(scale.is(Code::E8M0, 8) || (m.float_scale && !fp4), "has the wrong dtype");
    scale.check(scale.size() == count * m.scale_rows() * m.scales_per_row(), "does not fit its weight");
    m.weight = weight.bytes();
    m.scale = scale.bytes();
    return m;
}

// x [..., columns] f32 -> y [..., rows] f32, in place.
void py_linear(nb::handle x_object, nb::handle weight, nb::handle scale, nb::handle y_object) {
    const Argument x(x_object, "x"), y(y_object, "y");
    const Matrix m = matrix(Argument(weight, "weight"), Argument(scale, "scale"), 1);
    x.check(x.ndim >= 1 && x.last() == m.columns, "does not fit the weight");
    const index_t n = m.columns ? x.size() / m.columns : 0;
    y.check(y.size() == n * m.rows, "has the wrong size");
    const float* from = x.as<const float>(dlpack::Code::Float);
    float* to = y.as<float>(dlpack::Code::Float);
    nb::gil_scoped_release release;
    linear(m, from, n, to);
}

// x [..., groups, columns] f32 -> y [..., groups, rows] f32, in place; weight [groups * rows, columns].
void py_grouped_linear(nb::handle x_object, nb::handle weight, nb::handle scale, nb::handle y_object) {
    const Argument x(x_object, "x"), y(y_object, "y");
    x.check(x.ndim >= 2 && x.shape[x.ndim - 2] > 0, "has no groups");
    const index_t groups = x.shape[x.ndim - 2];
    const Matrix m = matrix(Argument(weight, "weight"), Argument(scale, "scale"), groups);
    x.check(x.last() == m.columns, "does not fit the weight");
    const index_t n = m.columns ? x.size() / (groups * m.columns) : 0;
    y.check(y.size() == n * groups * m.rows, "has the wrong size");
    const float* from = x.as<const float>(dlpack::Code::Float);
    float* to = y.as<float>(dlpack::Code::Float);
    nb::gil_scoped_release release;
    grouped_linear(m, groups, from, n, to);
}

// x [N, D], indices [N, K] int64, weights [N, K], w1 and w3 [E, I, D], w2 [E, D, I] -> y [N, D] f32, in place.
void py_experts(nb::handle x_object, nb::handle indices_object, nb::handle weights_object, nb::handle w1,
                nb::handle s1, nb::handle w3, nb::handle s3, nb::handle w2, nb::handle s2, float limit,
                bool round_input, nb::handle y_object) {
    const Argument x(x_object, "x"), y(y_object, "y"), first(w1, "w1");
    const Argument indices(indices_object, "indices"), weights(weights_object, "weights");
    first.check(first.ndim == 3, "is not [E, I, D]");
    const index_t count = first.shape[0];
    const Experts e{matrix(first, Argument(s1, "s1"), count),
                    matrix(Argument(w3, "w3"), Argument(s3, "s3"), count),
                    matrix(Argument(w2, "w2"), Argument(s2, "s2"), count), limit, round_input};
    x.check(x.ndim == 2 && x.last() == e.w1.columns, "is not [N, D]");
    first.check(e.w3.format == e.w1.format && e.w3.rows == e.w1.rows && e.w3.columns == e.w1.columns &&
                    e.w2.rows == e.w1.columns && e.w2.columns == e.w1.rows,
                "does not fit w3 and w2");
    const index_t n = x.shape[0];
    indices.check(indices.ndim == 2 && indices.shape[0] == n, "is not [N, K]");
    weights.check(weights.size() == indices.size(), "does not fit indices");
    y.check(y.size() == x.size(), "has the wrong size");
    const index_t* chosen = indices.as<const index_t>(dlpack::Code::Int);
    for (index_t i = 0; i < indices.size(); ++i)
        indices.check(chosen[i] >= 0 && chosen[i] < count, "names an expert that does not exist");
    const float* from = x.as<const float>(dlpack::Code::Float);
    const float* amounts = weights.as<const float>(dlpack::Code::Float);
    float* to = y.as<float>(dlpack::Code::Float);
    nb::gil_scoped_release release;
    experts(e, from, chosen, amounts, n, indices.shape[1], to);
}

}  // namespace
}  // namespace fourfold

NB_MODULE(_native, m) {
    using namespace fourfold;
    m.doc() = "Native CPU kernels on packed weights; fourfold.kernels.cpu.ops is the door.";
    m.def("bind", &bind, nb::arg("tensor_type"));
    m.def("supported_isas", &supported_isas);
    m.def("isa", [] { return std::string(kernels().name); });
    m.def("use_isa", &use_isa, nb::arg("name"));
    m.def("threads", [] { return ThreadPool::instance().threads(); });
    m.def("set_threads", [](int n) { ThreadPool::instance().set_threads(n); }, nb::arg("threads"));
    m.def("linear", &py_linear);
    m.def("grouped_linear", &py_grouped_linear);
    m.def("experts", &py_experts);
    add_tensor_ops(m);
}
