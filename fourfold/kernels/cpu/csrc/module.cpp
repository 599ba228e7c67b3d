// The Python module fourfold.kernels.cpu._native: checks tensors, lets go of the GIL, calls ops.h.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <string>
#include <utility>
#include <vector>

#include "composed_ops.h"
#include "isa.h"
#include "memory.h"
#include "module_machine.h"
#include "stored.h"
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

// x [..., columns] -> y [..., rows] f32, in place.
void py_linear(nb::handle x_object, nb::handle weight, nb::handle scale, int rounding, nb::handle y_object) {
    const Argument x(x_object, "x"), y(y_object, "y");
    const Matrix m = matrix(Argument(weight, "weight"), scale, 1);
    x.check(x.ndim >= 1 && x.last() == m.columns, "does not fit the weight");
    const Activations rows = rows_of(x);
    y.check(y.size() == rows.count * m.rows, "has the wrong size");
    float* to = y.as<float>(dlpack::Code::Float);
    const Rounding how = rounding_of(rounding);
    nb::gil_scoped_release release;
    linear(m, rows, how, to);
}

// x [..., groups, columns] -> y [..., groups, rows] f32, in place; weight [groups * rows, columns].
void py_grouped_linear(nb::handle x_object, nb::handle weight, nb::handle scale, int rounding, nb::handle y_object) {
    const Argument x(x_object, "x"), y(y_object, "y");
    x.check(x.ndim >= 2 && x.shape[x.ndim - 2] > 0, "has no groups");
    const index_t groups = x.shape[x.ndim - 2];
    const Matrix m = matrix(Argument(weight, "weight"), scale, groups);
    x.check(x.last() == m.columns, "does not fit the weight");
    const Activations rows = rows_of(x);
    y.check(y.size() == rows.count * m.rows, "has the wrong size");
    float* to = y.as<float>(dlpack::Code::Float);
    const Rounding how = rounding_of(rounding);
    nb::gil_scoped_release release;
    grouped_linear(m, groups, rows, how, to);
}

// x [N, D], indices [N, K] int64, weights [N, K], w1 and w3 [S, I, D], w2 [S, D, I], places [E] int64 or None:
// added to y [N, D] f32, in place.
void py_experts(nb::handle x_object, nb::handle indices_object, nb::handle weights_object, nb::handle w1,
                nb::handle s1, nb::handle w3, nb::handle s3, nb::handle w2, nb::handle s2, float limit, int rounding,
                nb::handle places_object, nb::handle y_object) {
    const Argument x(x_object, "x"), y(y_object, "y"), first(w1, "w1");
    const Argument indices(indices_object, "indices"), weights(weights_object, "weights");
    Stacks stacks = stacks_of(first, s1, Argument(w3, "w3"), s3, Argument(w2, "w2"), s2);
    x.check(x.ndim == 2 && x.last() == stacks.w1.columns, "is not [N, D]");
    const Activations rows = rows_of(x);
    indices.check(indices.ndim == 2 && indices.shape[0] == rows.count, "is not [N, K]");
    weights.check(weights.size() == indices.size(), "does not fit indices");
    y.check(y.size() == x.size(), "has the wrong size");
    const index_t count = first.shape[0];
    index_t experts = count;
    if (!places_object.is_none()) {
        const Argument places(places_object, "places");
        stacks.places = places.as<const index_t>(dlpack::Code::Int);
        experts = places.size();
        for (index_t e = 0; e < experts; ++e)
            places.check(stacks.places[e] >= -1 && stacks.places[e] < count, "names a row that does not exist");
    }
    const index_t* chosen = experts_of(indices, experts);
    const float* amounts = weights.as<const float>(dlpack::Code::Float);
    float* to = y.as<float>(dlpack::Code::Float);
    const Gate gate{limit, rounding_of(rounding)};
    const index_t choices = indices.shape[1];
    nb::gil_scoped_release release;
    add_experts(stacks, gate, nullptr, chosen, amounts, choices, rows, to);
}

}  // namespace
}  // namespace fourfold

NB_MODULE(_native, m) {
    using namespace fourfold;
    m.doc() = "Native CPU kernels on packed weights; fourfold.kernels.cpu.ops is the door.";
    m.def("bind", &bind, nb::arg("tensor_type"));
    m.def("supported_isas", &supported_isas);
    m.def("isa", &isa);
    m.def("use_isa", &use_isa, nb::arg("name"));
    m.def("fp4_rounding", [] { return int(fp4_rounding()); });
    m.def("threads", [] { return ThreadPool::instance().threads(); });
    m.def("set_threads", [](int n) { ThreadPool::instance().set_threads(n); }, nb::arg("threads"));
    using nb::arg;
    m.def("place_helpers", [](std::vector<std::vector<int>> processors) {
        ThreadPool::instance().place_helpers(std::move(processors));
    }, arg("processors"));
    m.def("keep_freed_memory", &keep_freed_memory);
    m.def("interleave", &interleave, arg("address"), arg("size"), arg("nodes"));
    m.def("linear", &py_linear, arg("x"), arg("weight"), arg("scale").none(), arg("rounding"), arg("y"));
    m.def("grouped_linear", &py_grouped_linear, arg("x"), arg("weight"), arg("scale").none(), arg("rounding"), arg("y"));
    m.def("experts", &py_experts, arg("x"), arg("indices"), arg("weights"), arg("w1"), arg("s1").none(), arg("w3"),
          arg("s3").none(), arg("w2"), arg("s2").none(), arg("limit"), arg("rounding"), arg("places").none(), arg("y"));
    add_composed_ops(m);
    add_tensor_ops(m);
    add_machine(m);
}
