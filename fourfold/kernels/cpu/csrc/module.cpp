// The Python module fourfold.kernels.cpu._native: checks tensors, lets go of the GIL, calls ops.h.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "argument.h"
#include "composed_ops.h"
#include "isa.h"
#include "memory.h"
#include "module_machine.h"
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

// weight [count, rows, columns] or [count * rows, columns] with its scale (None if it is not packed), `count`
// matrices in all.
Matrix matrix(const Argument& weight, nb::handle scale_object, index_t count) {
    using dlpack::Code;
    Matrix m{};
    weight.check(weight.ndim >= 2, "has fewer than two dimensions");
    const bool fp4 = weight.is(Code::Int, 8), fp8 = weight.is(Code::E4M3, 8);
    weight.check(fp4 || fp8 || weight.is(Code::Bfloat, 16) || weight.is(Code::Float, 32),
                 "is neither FP4 (int8), FP8 (float8_e4m3fn), bfloat16 nor float32");
    m.format = fp4 ? Format::Fp4 : fp8 ? Format::Fp8 : weight.bits == 16 ? Format::Bf16 : Format::F32;
    m.columns = weight.last() * (fp4 ? 2 : 1);
    weight.check(!fp4 || m.columns % kFp4Group == 0, "has columns that are no multiple of 32");
    const index_t rows = m.columns ? weight.size() / weight.last() : 0;
    weight.check(count > 0 && rows % count == 0, "does not divide into its groups");
    m.rows = rows / count;
    m.weight = weight.bytes();
    weight.check(scale_object.is_none() != m.scaled(), m.scaled() ? "has no scale" : "has a scale that it cannot use");
    if (!m.scaled()) return m;
    const Argument scale(scale_object, "scale");
    weight.check(fp4 || count == 1 || weight.ndim == 3 || m.rows % kFp8Block == 0,
                 "has groups that share rows of scales");
    m.float_scale = scale.is(Code::Float, 32);
    scale.check(scale.is(Code::E8M0, 8) || (m.float_scale && !fp4), "has the wrong dtype");
    scale.check(scale.size() == count * m.scale_rows() * m.scales_per_row(), "does not fit its weight");
    m.scale = scale.bytes();
    return m;
}

// x [..., columns], float32 or bfloat16.
Activations rows_of(const Argument& x) {
    const bool narrow = x.type() == Type::Bf16;
    const index_t columns = x.last();
    return {narrow ? nullptr : reinterpret_cast<const float*>(x.bytes()),
            narrow ? reinterpret_cast<const bf16_t*>(x.bytes()) : nullptr, columns ? x.size() / columns : 0, columns,
            columns};
}

Rounding rounding_of(int number) {
    if (number < 0 || number > 2) throw nb::value_error("rounding is not 0, 1 or 2");
    return Rounding(number);
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

NormWeight norm_weight(const Argument& weight, index_t width) {
    weight.check(weight.size() == width, "does not fit its input");
    return {weight.memory(), weight.type()};
}

Angles angles_of(const Argument& cos, const Argument& sin, index_t tokens) {
    cos.check(cos.ndim >= 1 && cos.last() > 0 && cos.size() == tokens * cos.last(), "is not one row a token");
    sin.check(sin.size() == cos.size(), "does not fit cos");
    return {cos.floats(), sin.floats(), cos.last()};
}

float* room(const Argument& y, index_t size) {
    y.check(y.size() == size, "has the wrong size");
    return y.as<float>(dlpack::Code::Float);
}

// x [..., D] -> qr [..., R], q [..., heads, C], kv [..., C], all float32, in place.
void py_attention_inputs(nb::handle x_object, nb::handle wq_a, nb::handle sq_a, nb::handle q_norm, nb::handle wq_b,
                         nb::handle sq_b, nb::handle wkv, nb::handle skv, nb::handle kv_norm, nb::handle cos,
                         nb::handle sin, index_t heads, float eps, int to_wq_a, int to_wq_b, int to_wkv,
                         nb::handle qr_object, nb::handle q_object, nb::handle kv_object) {
    const Argument x(x_object, "x"), qr(qr_object, "qr"), q(q_object, "q"), kv(kv_object, "kv");
    const Activations rows = rows_of(x);
    AttentionInputs a{matrix(Argument(wq_a, "wq_a"), sq_a, 1), matrix(Argument(wq_b, "wq_b"), sq_b, 1),
                      matrix(Argument(wkv, "wkv"), skv, 1), rounding_of(to_wq_a), rounding_of(to_wq_b),
                      rounding_of(to_wkv), {}, {}, angles_of(Argument(cos, "cos"), Argument(sin, "sin"), rows.count),
                      heads, eps};
    x.check(x.last() == a.wq_a.columns && x.last() == a.wkv.columns, "does not fit wq_a and wkv");
    q.check(a.wq_b.columns == a.wq_a.rows && heads > 0 && a.wq_b.rows % heads == 0, "does not fit wq_b");
    kv.check(2 * a.angles.pairs <= a.wkv.rows && 2 * a.angles.pairs <= a.wq_b.rows / heads, "is turned by too much");
    a.q_norm = norm_weight(Argument(q_norm, "q_norm"), a.wq_a.rows);
    a.kv_norm = norm_weight(Argument(kv_norm, "kv_norm"), a.wkv.rows);
    float *to_qr = room(qr, rows.count * a.wq_a.rows), *to_q = room(q, rows.count * a.wq_b.rows),
          *to_kv = room(kv, rows.count * a.wkv.rows);
    nb::gil_scoped_release release;
    attention_inputs(a, rows, to_qr, to_q, to_kv);
}

// o [..., heads, C] f32 -> y [..., D] f32, in place.
void py_attention_output(nb::handle o_object, nb::handle cos, nb::handle sin, nb::handle wo_a, nb::handle so_a,
                         index_t groups, nb::handle wo_b, nb::handle so_b, int to_wo_a, int to_wo_b,
                         nb::handle y_object) {
    const Argument o(o_object, "o"), y(y_object, "y");
    o.check(o.ndim >= 2 && o.size() > 0, "has no heads");
    const index_t heads = o.shape[o.ndim - 2], width = o.last(), tokens = o.size() / (heads * width);
    const AttentionOutput a{matrix(Argument(wo_a, "wo_a"), so_a, groups), matrix(Argument(wo_b, "wo_b"), so_b, 1),
                            rounding_of(to_wo_a), rounding_of(to_wo_b),
                            angles_of(Argument(cos, "cos"), Argument(sin, "sin"), tokens), groups};
    o.check(a.wo_a.columns * groups == heads * width && 2 * a.angles.pairs <= width, "does not fit wo_a");
    y.check(a.wo_b.columns == groups * a.wo_a.rows, "does not fit wo_b");
    const float* from = o.floats();
    float* to = room(y, tokens * a.wo_b.rows);
    nb::gil_scoped_release release;
    attention_output(a, from, tokens, heads, width, to);
}

// x [..., D], ape [m, C], positions [...] int64 -> y [..., 2C] f32, in place.
void py_compressor_inputs(nb::handle x_object, nb::handle wkv, nb::handle skv, nb::handle wgate, nb::handle sgate,
                          nb::handle ape_object, nb::handle positions_object, int rounding, nb::handle y_object) {
    const Argument x(x_object, "x"), ape(ape_object, "ape"), positions(positions_object, "positions"), y(y_object, "y");
    const Matrix values = matrix(Argument(wkv, "wkv"), skv, 1), gate = matrix(Argument(wgate, "wgate"), sgate, 1);
    const Activations rows = rows_of(x);
    x.check(x.last() == values.columns && x.last() == gate.columns && gate.rows == values.rows, "does not fit the weights");
    ape.check(ape.ndim == 2 && ape.shape[0] > 0 && ape.last() == values.rows, "does not fit the weights");
    positions.check(positions.size() == rows.count, "does not fit x");
    const float* bias = ape.floats();
    const index_t *at = positions.integers(), m = ape.shape[0];
    for (index_t t = 0; t < rows.count; ++t) positions.check(at[t] >= 0, "is negative");
    float* to = room(y, rows.count * 2 * values.rows);
    const Rounding how = rounding_of(rounding);
    nb::gil_scoped_release release;
    compressor_inputs(values, gate, how, bias, m, at, rows, to);
}

// Tokens whose visits are worked on at once: bounds the memory for the experts' results.
constexpr index_t kTokensAtOnce = 1024;

// x [N, D], indices [N, K] int64, weights [N, K], w1 and w3 [S, I, D], w2 [S, D, I], places [E] int64 or None:
// added to y [N, D] f32, in place.
void py_experts(nb::handle x_object, nb::handle indices_object, nb::handle weights_object, nb::handle w1,
                nb::handle s1, nb::handle w3, nb::handle s3, nb::handle w2, nb::handle s2, float limit, int rounding,
                nb::handle places_object, nb::handle y_object) {
    const Argument x(x_object, "x"), y(y_object, "y"), first(w1, "w1");
    const Argument indices(indices_object, "indices"), weights(weights_object, "weights");
    first.check(first.ndim == 3, "is not [S, I, D]");
    const index_t count = first.shape[0];
    Stacks stacks{matrix(first, s1, count), matrix(Argument(w3, "w3"), s3, count), matrix(Argument(w2, "w2"), s2, count),
                  nullptr};
    x.check(x.ndim == 2 && x.last() == stacks.w1.columns, "is not [N, D]");
    first.check(stacks.w3.format == stacks.w1.format && stacks.w3.rows == stacks.w1.rows &&
                    stacks.w3.columns == stacks.w1.columns && stacks.w2.rows == stacks.w1.columns &&
                    stacks.w2.columns == stacks.w1.rows,
                "does not fit w3 and w2");
    const Activations rows = rows_of(x);
    const index_t n = rows.count;
    indices.check(indices.ndim == 2 && indices.shape[0] == n, "is not [N, K]");
    weights.check(weights.size() == indices.size(), "does not fit indices");
    y.check(y.size() == x.size(), "has the wrong size");
    index_t experts = count;
    if (!places_object.is_none()) {
        const Argument places(places_object, "places");
        stacks.places = places.as<const index_t>(dlpack::Code::Int);
        experts = places.size();
        for (index_t e = 0; e < experts; ++e)
            places.check(stacks.places[e] >= -1 && stacks.places[e] < count, "names a row that does not exist");
    }
    const index_t* chosen = indices.as<const index_t>(dlpack::Code::Int);
    for (index_t i = 0; i < indices.size(); ++i)
        indices.check(chosen[i] >= 0 && chosen[i] < experts, "names an expert that does not exist");
    const float* amounts = weights.as<const float>(dlpack::Code::Float);
    float* to = y.as<float>(dlpack::Code::Float);
    const Gate gate{limit, rounding_of(rounding)};
    const index_t choices = indices.shape[1];
    nb::gil_scoped_release release;
    for (index_t begin = 0; begin < n; begin += kTokensAtOnce) {
        const index_t part = std::min(kTokensAtOnce, n - begin);
        thread_local std::vector<Expert> visited;
        thread_local Visits visits;
        visited.clear(), visits.token.clear(), visits.weight.clear();
        route(stacks, chosen + begin * choices, amounts + begin * choices, part, choices, visited, visits);
        visit_experts(visited, visits, gate, rows.from(begin, part), to + begin * rows.columns);
    }
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
    m.def("attention_inputs", &py_attention_inputs, arg("x"), arg("wq_a"), arg("sq_a").none(), arg("q_norm"),
          arg("wq_b"), arg("sq_b").none(), arg("wkv"), arg("skv").none(), arg("kv_norm"), arg("cos"), arg("sin"),
          arg("heads"), arg("eps"), arg("to_wq_a"), arg("to_wq_b"), arg("to_wkv"), arg("qr"), arg("q"), arg("kv"));
    m.def("attention_output", &py_attention_output, arg("o"), arg("cos"), arg("sin"), arg("wo_a"), arg("so_a").none(),
          arg("groups"), arg("wo_b"), arg("so_b").none(), arg("to_wo_a"), arg("to_wo_b"), arg("y"));
    m.def("compressor_inputs", &py_compressor_inputs, arg("x"), arg("wkv"), arg("skv").none(), arg("wgate"),
          arg("sgate").none(), arg("ape"), arg("positions"), arg("rounding"), arg("y"));
    add_tensor_ops(m);
    add_machine(m);
}
