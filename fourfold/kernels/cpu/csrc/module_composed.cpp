// The operations of composed_ops.h in the Python module.  Each returns False, and has done nothing, where a weight
// lies as the products do not read it.
#include "composed_ops.h"
#include "stored.h"
#include "streams.h"

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
    bool readable() const { return wkv.readable() && wgate.readable() && Glance(ape).f32(); }
    CompressorInputs inputs(const Argument& x, const Argument& y, index_t tokens) const {
        const Argument bias(ape, "ape");
        CompressorInputs c{matrix(wkv, "wkv"), matrix(wgate, "wgate"), bias.floats(), bias.shape[0], nullptr};
        x.check(x.last() == c.wkv.columns && x.last() == c.wgate.columns && c.wkv.rows == c.wgate.rows,
                "does not fit a compressor");
        bias.check(bias.ndim == 2 && bias.shape[0] > 0 && bias.last() == c.wkv.rows, "does not fit the weights");
        c.y = output(y, tokens * 2 * c.wkv.rows);
        return c;
    }

private:
    static Object item(Object parts, int i) {
        if (!PyTuple_CheckExact(parts.ptr()) || PyTuple_GET_SIZE(parts.ptr()) != 3)
            throw nb::type_error("a compressor is not (wkv, wgate, ape)");
        return PyTuple_GET_ITEM(parts.ptr(), i);
    }
};

// fn, scale, base and the norm's weight: how streams enter a sublayer.
struct EntryArguments {
    MixingArguments mixing;
    Object norm;

    EntryArguments(const nb::tuple& entry, int iterations, float norm_eps, float eps)
        : mixing{entry[0], entry[1], entry[2], iterations, norm_eps, eps}, norm(entry[3]) {}
    bool enters(Object streams) const {
        return Glance(streams).f32() && mixes(streams, mixing) && Glance(norm).floats();
    }
};

// streams [..., n, D] f32 -> x [..., D], post, comb, qr [..., R], q [..., heads, C], kv [..., C] and rows [..., 2 C']
// of each compressor, in place.
bool py_attention_inputs(Object streams_object, nb::tuple entry, int iterations, float norm_eps, float eps, Object wq_a,
                         Object q_norm, Object wq_b, Object wkv, Object kv_norm, Object cos, Object sin, index_t heads,
                         int to_wq_a, int to_wq_b, int to_wkv, nb::tuple compressors, Object positions,
                         int to_compressors, Object x_object, Object post, Object comb, Object qr_object,
                         Object q_object, Object kv_object, nb::list rows) {
    const StoredPair first(wq_a), second(wq_b), values(wkv);
    const EntryArguments entering(entry, iterations, norm_eps, eps);
    if (!entering.enters(streams_object) || !first.readable() || !second.readable() || !values.readable()) return false;
    const Streams streams(streams_object, entering.mixing);
    const Argument x(x_object, "x"), qr(qr_object, "qr"), q(q_object, "q"), kv(kv_object, "kv");
    const index_t tokens = streams.tokens;
    float* in = output(x, tokens * streams.width);
    AttentionInputs a{{static_cast<const float*>(streams.x.memory()), tokens, streams.n, streams.width,
                       streams.entry(entering.norm, in, post, comb)},
                      matrix(first, "wq_a"), matrix(second, "wq_b"), matrix(values, "wkv"), rounding_of(to_wq_a),
                      rounding_of(to_wq_b), rounding_of(to_wkv), rounding_of(to_compressors), {}, {},
                      angles_of(Argument(cos, "cos"), Argument(sin, "sin"), tokens), heads, norm_eps, nullptr, {}};
    x.check(streams.width == a.wq_a.columns && streams.width == a.wkv.columns, "does not fit wq_a and wkv");
    q.check(a.wq_b.columns == a.wq_a.rows && heads > 0 && a.wq_b.rows % heads == 0, "does not fit wq_b");
    kv.check(2 * a.angles.pairs <= a.wkv.rows && 2 * a.angles.pairs <= a.wq_b.rows / heads, "is turned by too much");
    a.q_norm = norm_weight(Argument(q_norm, "q_norm"), a.wq_a.rows);
    a.kv_norm = norm_weight(Argument(kv_norm, "kv_norm"), a.wkv.rows);
    if (compressors.size() > 0) a.positions = positions_of(Argument(positions, "positions"), tokens);
    x.check(rows.size() == compressors.size(), "has not rows for each compressor");
    for (std::size_t i = 0; i < compressors.size(); ++i) {
        const Compressor compressor(compressors[i]);
        if (!compressor.readable()) return false;
        a.compressors.push_back(compressor.inputs(x, Argument(rows[i], "rows"), tokens));
    }
    float *to_qr = output(qr, tokens * a.wq_a.rows), *to_q = output(q, tokens * a.wq_b.rows),
          *to_kv = output(kv, tokens * a.wkv.rows);
    nb::gil_scoped_release release;
    attention_inputs(a, to_qr, to_q, to_kv);
    return true;
}

// Whether groups that are no whole number of FP8 blocks share scales with their neighbours.
bool shares_scales(const StoredPair& stack, index_t groups) {
    const Glance w(stack.weight);
    return w.is(dlpack::Code::E4M3, 8) && (groups < 1 || w.shape[0] / groups % kFp8Block != 0);
}

// q [B, T, H, C] f32 and what it sees -> y [B, T, D] f32, in place.
bool py_attention(Object q_object, Object window, Object window_range, Object entries, Object entry_range,
                  Object entry_index, Object sink, float scale, bool round, Object cos, Object sin, Object wo_a,
                  index_t groups, Object wo_b, int to_wo_a, int to_wo_b, Object y_object) {
    const StoredPair first(wo_a), second(wo_b);
    const AttentionArguments seen{window, window_range, entries, entry_range, entry_index, sink, scale, round};
    const Glance queries(q_object);
    if (!queries.f32() || !queries.some() || !attends(q_object, seen)) return false;
    if (!first.readable() || !second.readable() || shares_scales(first, groups)) return false;
    const Argument q(q_object, "q", Layout::Rows), y(y_object, "y");
    const Attention a = attention_of(q, seen);
    const index_t tokens = a.batch * a.tokens;
    const AttentionOutput out{matrix(first, "wo_a", groups), matrix(second, "wo_b"), rounding_of(to_wo_a),
                              rounding_of(to_wo_b), angles_of(Argument(cos, "cos"), Argument(sin, "sin"), tokens),
                              groups};
    q.check(out.wo_a.columns * groups == a.heads * a.width && 2 * out.angles.pairs <= a.width, "does not fit wo_a");
    y.check(out.wo_b.columns == groups * out.wo_a.rows, "does not fit wo_b");
    float* to = output(y, tokens * out.wo_b.rows);
    nb::gil_scoped_release release;
    attention(a, out, to);
    return true;
}

// x [..., D], ape [m, C], positions [...] int64 -> y [..., 2C] f32, in place.
bool py_compressor_inputs(Object x_object, Object parts, Object positions, int rounding, Object y_object) {
    const Compressor compressor(parts);
    if (!compressor.readable() || !Glance(x_object).floats()) return false;
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

struct MoeArguments {
    Object router, bias, chosen;
    index_t choices;
    float scaling;
    ExpertWeights routed, shared;
    float limit;
    int to_routed, to_shared;

    bool readable() const { return Glance(router).floats() && routed.readable() && shared.readable(); }
    // For `tokens` rows of `width`.
    MixtureOfExperts parts(index_t tokens, index_t width) const;
};

MixtureOfExperts MoeArguments::parts(index_t tokens, index_t width) const {
    const Argument scores(router, "router", Layout::Rows), stack(routed.w1.weight, "w1");
    MixtureOfExperts m{};
    m.routed = stacks_of(stack, routed.w1.scale, Argument(routed.w3.weight, "w3"), routed.w3.scale,
                         Argument(routed.w2.weight, "w2"), routed.w2.scale);
    m.shared = {matrix(shared.w1, "shared w1"), matrix(shared.w3, "shared w3"), matrix(shared.w2, "shared w2"),
                rounding_of(to_shared)};
    m.gate = {limit, rounding_of(to_routed)};
    m.experts = scores.ndim == 2 ? scores.shape[0] : 0;
    m.router = scores.rows();
    m.scaling = scaling;
    m.choices = choices;
    const SharedExpert& own = m.shared;
    scores.check(m.experts > 0 && scores.last() == width, "is not [E, D]");
    scores.check(m.experts <= stack.shape[0], "names more experts than there are");
    stack.check(m.routed.w1.columns == width, "does not fit x");
    stack.check(own.w1.columns == width && own.w3.columns == width && own.w2.rows == width &&
                    own.w3.rows == own.w1.rows && own.w2.columns == own.w1.rows && own.w3.format == own.w1.format,
                "has beside it a shared expert that does not fit");
    if (chosen.is_none()) {
        const Argument b(bias, "bias");
        b.check(b.size() == m.experts && choices <= m.experts, "is not [E] of at least K");
        m.bias = b.floats();
    } else {
        const Argument known(chosen, "chosen");
        known.check(known.size() == tokens * choices, "is not [N, K]");
        m.chosen = experts_of(known, m.experts);
    }
    return m;
}

// x [..., D] f32, router [E, D], bias [E] or chosen [N, K] int64 -> y [..., D] f32, in place.
bool py_moe(Object x_object, Object router, Object bias, Object chosen, index_t choices, float scaling,
            nb::tuple routed, nb::tuple shared, float limit, int to_routed, int to_shared, Object y) {
    const MoeArguments from{router, bias, chosen, choices, scaling, ExpertWeights(routed), ExpertWeights(shared), limit,
                            to_routed, to_shared};
    const Glance rows(x_object);
    if (!rows.f32() || !rows.gapless() || !rows.some() || !from.readable()) return false;
    const Argument x(x_object, "x");
    const Activations activations = rows_of(x);
    const MixtureOfExperts m = from.parts(activations.count, activations.columns);
    float* to = output(Argument(y, "y"), x.size());
    nb::gil_scoped_release release;
    moe(m, activations, to);
    return true;
}

// From attention's output [..., D] f32, and the post and comb of its streams [..., n, D], to the streams y.
bool py_hc_moe(Object output_object, Object streams_object, Object post, Object comb, nb::tuple entry, int iterations,
               float norm_eps, float eps, Object router, Object bias, Object chosen, index_t choices, float scaling,
               nb::tuple routed, nb::tuple shared, float limit, int to_routed, int to_shared, Object y) {
    const EntryArguments entering(entry, iterations, norm_eps, eps);
    const MoeArguments from{router, bias, chosen, choices, scaling, ExpertWeights(routed), ExpertWeights(shared), limit,
                            to_routed, to_shared};
    if (!entering.enters(streams_object) || !from.readable()) return false;
    const Streams s(streams_object, entering.mixing);
    const StreamReturn back = return_of(s.x, output_object, post, comb);
    const Entering to{static_cast<const float*>(s.x.memory()), s.tokens, s.n, s.width,
                      s.entry(entering.norm, nullptr, static_cast<float*>(nullptr), static_cast<float*>(nullptr))};
    const MixtureOfExperts m = from.parts(s.tokens, s.width);
    float* result = output(Argument(y, "y"), s.x.size());
    nb::gil_scoped_release release;
    hc_moe(back, to, m, result);
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
    m.def("hc_moe", &py_hc_moe, given, given, given, given, given, given, given, given, given, maybe, maybe, given,
          given, given, given, given, given, given, given);
}

}  // namespace fourfold
