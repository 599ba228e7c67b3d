// The operations of composed_ops.h in the Python module.  Each returns False, and has done nothing, where a weight
// lies as the products do not read it.
#include "composed_ops.h"
#include "stored.h"

namespace fourfold {
namespace {

using Object = nb::handle;

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

const index_t* positions_of(const Argument& positions, index_t tokens) {
    positions.check(positions.size() == tokens, "does not fit x");
    const index_t* at = positions.integers();
    for (index_t t = 0; t < tokens; ++t) positions.check(at[t] >= 0, "is negative");
    return at;
}

// (wkv, wgate, ape) of a compressor.
struct Compressor {
    StoredPair wkv, wgate;
    Object ape;

    explicit Compressor(Object parts)
        : wkv(item(parts, 0)), wgate(item(parts, 1)), ape(item(parts, 2)) {}
    bool readable() const { return wkv.readable() && wgate.readable(); }
    CompressorInputs inputs(const Argument& x, const Argument& y, index_t tokens) const {
        const Argument bias(ape, "ape");
        CompressorInputs c{matrix(wkv, "wkv"), matrix(wgate, "wgate"), bias.floats(), bias.shape[0], nullptr};
        x.check(x.last() == c.wkv.columns && x.last() == c.wgate.columns && c.wkv.rows == c.wgate.rows,
                "does not fit a compressor");
        bias.check(bias.ndim == 2 && bias.shape[0] > 0 && bias.last() == c.wkv.rows, "does not fit the weights");
        c.y = room(y, tokens * 2 * c.wkv.rows);
        return c;
    }

private:
    static Object item(Object parts, int i) {
        if (!PyTuple_CheckExact(parts.ptr()) || PyTuple_GET_SIZE(parts.ptr()) != 3)
            throw nb::type_error("a compressor is not (wkv, wgate, ape)");
        return PyTuple_GET_ITEM(parts.ptr(), i);
    }
};

// x [..., D] f32 -> qr [..., R], q [..., heads, C], kv [..., C] and rows [..., 2 C'] of each compressor, in place.
bool py_attention_inputs(Object x_object, Object wq_a, Object q_norm, Object wq_b, Object wkv, Object kv_norm,
                         Object cos, Object sin, index_t heads, float eps, int to_wq_a, int to_wq_b, int to_wkv,
                         nb::tuple compressors, Object positions, int to_compressors, Object qr_object,
                         Object q_object, Object kv_object, nb::list rows) {
    const StoredPair first(wq_a), second(wq_b), values(wkv);
    if (!first.readable() || !second.readable() || !values.readable()) return false;
    const Argument x(x_object, "x"), qr(qr_object, "qr"), q(q_object, "q"), kv(kv_object, "kv");
    const Activations from = rows_of(x);
    AttentionInputs a{matrix(first, "wq_a"), matrix(second, "wq_b"), matrix(values, "wkv"), rounding_of(to_wq_a),
                      rounding_of(to_wq_b), rounding_of(to_wkv), rounding_of(to_compressors), {}, {},
                      angles_of(Argument(cos, "cos"), Argument(sin, "sin"), from.count), heads, eps, nullptr, {}};
    x.check(x.last() == a.wq_a.columns && x.last() == a.wkv.columns, "does not fit wq_a and wkv");
    q.check(a.wq_b.columns == a.wq_a.rows && heads > 0 && a.wq_b.rows % heads == 0, "does not fit wq_b");
    kv.check(2 * a.angles.pairs <= a.wkv.rows && 2 * a.angles.pairs <= a.wq_b.rows / heads, "is turned by too much");
    a.q_norm = norm_weight(Argument(q_norm, "q_norm"), a.wq_a.rows);
    a.kv_norm = norm_weight(Argument(kv_norm, "kv_norm"), a.wkv.rows);
    if (compressors.size() > 0) a.positions = positions_of(Argument(positions, "positions"), from.count);
    x.check(rows.size() == compressors.size(), "has not rows for each compressor");
    for (std::size_t i = 0; i < compressors.size(); ++i) {
        const Compressor compressor(compressors[i]);
        if (!compressor.readable()) return false;
        a.compressors.push_back(compressor.inputs(x, Argument(rows[i], "rows"), from.count));
    }
    float *to_qr = room(qr, from.count * a.wq_a.rows), *to_q = room(q, from.count * a.wq_b.rows),
          *to_kv = room(kv, from.count * a.wkv.rows);
    nb::gil_scoped_release release;
    attention_inputs(a, from, to_qr, to_q, to_kv);
    return true;
}

// q [B, T, H, C] f32 and what it sees -> y [B, T, D] f32, in place.
bool py_attention(Object q_object, Object window, Object window_range, Object entries, Object entry_range,
                  Object entry_index, Object sink, float scale, bool round, Object cos, Object sin, Object wo_a,
                  index_t groups, Object wo_b, int to_wo_a, int to_wo_b, Object y_object) {
    const StoredPair first(wo_a), second(wo_b);
    if (!first.readable() || !second.readable()) return false;
    const Argument q(q_object, "q", Layout::Rows), y(y_object, "y");
    q.check(q.type() == Type::F32, "is not float32");
    const Attention a = attention_of(q, {window, window_range, entries, entry_range, entry_index, sink, scale, round});
    const index_t tokens = a.batch * a.tokens;
    const AttentionOutput out{matrix(first, "wo_a", groups), matrix(second, "wo_b"), rounding_of(to_wo_a),
                              rounding_of(to_wo_b), angles_of(Argument(cos, "cos"), Argument(sin, "sin"), tokens),
                              groups};
    q.check(out.wo_a.columns * groups == a.heads * a.width && 2 * out.angles.pairs <= a.width, "does not fit wo_a");
    y.check(out.wo_b.columns == groups * out.wo_a.rows, "does not fit wo_b");
    float* to = room(y, tokens * out.wo_b.rows);
    nb::gil_scoped_release release;
    attention(a, out, to);
    return true;
}

// x [..., D], ape [m, C], positions [...] int64 -> y [..., 2C] f32, in place.
bool py_compressor_inputs(Object x_object, Object parts, Object positions, int rounding, Object y_object) {
    const Compressor compressor(parts);
    if (!compressor.readable()) return false;
    const Argument x(x_object, "x");
    const Activations rows = rows_of(x);
    const CompressorInputs c = compressor.inputs(x, Argument(y_object, "y"), rows.count);
    const index_t* at = positions_of(Argument(positions, "positions"), rows.count);
    const Rounding how = rounding_of(rounding);
    nb::gil_scoped_release release;
    compressor_inputs(c, how, at, rows);
    return true;
}

// The weights (w1, w3, w2) of experts.
struct ExpertWeights {
    StoredPair w1, w3, w2;

    explicit ExpertWeights(const nb::tuple& parts) : w1(parts[0]), w3(parts[1]), w2(parts[2]) {}
    bool readable() const { return w1.readable() && w3.readable() && w2.readable(); }
};

// x [..., D] f32, router [E, D], bias [E] or chosen [N, K] int64 -> y [..., D] f32, in place.
bool py_moe(Object x_object, Object router_object, Object bias_object, Object chosen_object, index_t choices,
            float scaling, nb::tuple routed, nb::tuple shared, float limit, int to_routed, int to_shared,
            Object y_object) {
    const ExpertWeights weights(routed), own(shared);
    if (!weights.readable() || !own.readable()) return false;
    const Argument x(x_object, "x"), router(router_object, "router", Layout::Rows), y(y_object, "y");
    const Activations rows = rows_of(x);
    MixtureOfExperts m{};
    m.routed = stacks_of(Argument(weights.w1.weight, "w1"), weights.w1.scale, Argument(weights.w3.weight, "w3"),
                         weights.w3.scale, Argument(weights.w2.weight, "w2"), weights.w2.scale);
    m.shared = {matrix(own.w1, "shared w1"), matrix(own.w3, "shared w3"), matrix(own.w2, "shared w2"),
                rounding_of(to_shared)};
    m.gate = {limit, rounding_of(to_routed)};
    m.experts = router.ndim == 2 ? router.shape[0] : 0;
    router.check(m.experts > 0 && router.last() == rows.columns, "is not [E, D]");
    x.check(rows.f32 && rows.columns == m.routed.w1.columns && rows.columns == m.shared.w1.columns &&
                rows.columns == m.shared.w2.rows && m.shared.w3.columns == rows.columns,
            "does not fit the experts");
    x.check(m.shared.w3.rows == m.shared.w1.rows && m.shared.w2.columns == m.shared.w1.rows &&
                m.shared.w3.format == m.shared.w1.format,
            "meets a shared expert whose matrices do not fit each other");
    router.check(m.experts <= Argument(weights.w1.weight, "w1").shape[0], "names more experts than there are");
    m.router = router.rows();
    m.scaling = scaling;
    m.choices = choices;
    if (chosen_object.is_none()) {
        const Argument bias(bias_object, "bias");
        bias.check(bias.size() == m.experts && choices <= m.experts, "is not [E] of at least K");
        m.bias = bias.floats();
    } else {
        const Argument chosen(chosen_object, "chosen");
        chosen.check(chosen.size() == rows.count * choices, "is not [N, K]");
        m.chosen = experts_of(chosen, m.experts);
    }
    float* to = room(y, x.size());
    nb::gil_scoped_release release;
    moe(m, rows, to);
    return true;
}

}  // namespace

void add_composed_ops(nb::module_& m) {
    const nb::arg given;
    const auto maybe = nb::arg().none();
    m.def("attention_inputs", &py_attention_inputs);
    m.def("attention", &py_attention, given, given, given, maybe, maybe, maybe, given, given, given, given, given, given,
          given, given, given, given, given);
    m.def("compressor_inputs", &py_compressor_inputs);
    m.def("moe", &py_moe, given, given, maybe, maybe, given, given, given, given, given, given, given, given);
}

}  // namespace fourfold
