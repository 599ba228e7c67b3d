// The operations of composed_ops.h in the Python module.  Each returns False, and has done nothing, where a weight
// lies as the products do not read it.
#include <string>

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

// Element i of a tuple of `count`.
Object item(Object tuple, int i, int count) {
    if (!PyTuple_CheckExact(tuple.ptr()) || PyTuple_GET_SIZE(tuple.ptr()) != count)
        throw nb::type_error(("an argument is not a tuple of " + std::to_string(count)).c_str());
    return PyTuple_GET_ITEM(tuple.ptr(), i);
}

// A fourfold.kernels.formats.Rounding.
Rounding rounding_of(Object rounding) {
    static PyObject* const name = PyUnicode_InternFromString("_value_");
    return fourfold::rounding_of(nb::cast<int>(nb::steal(PyObject_GetAttr(rounding.ptr(), name))));
}

// (wkv, wgate, ape) of a compressor.
struct Compressor {
    StoredPair wkv, wgate;
    Object ape;

    explicit Compressor(Object parts) : wkv(item(parts, 0, 3)), wgate(item(parts, 1, 3)), ape(item(parts, 2, 3)) {}
    bool readable() const { return wkv.readable() && wgate.readable() && Glance(ape).f32(); }
    // For x of this width; where the rows go is not set.
    CompressorInputs inputs(index_t width) const {
        const Argument bias(ape, "ape");
        const CompressorInputs c{matrix(wkv, "wkv"), matrix(wgate, "wgate"), bias.floats(), bias.shape[0], nullptr};
        bias.check(width == c.wkv.columns && width == c.wgate.columns && c.wkv.rows == c.wgate.rows,
                   "has beside it weights that do not fit");
        bias.check(bias.ndim == 2 && bias.shape[0] > 0 && bias.last() == c.wkv.rows, "does not fit the weights");
        return c;
    }
};

// fn, scale, base and the norm's weight: how streams enter a sublayer.
struct EntryArguments {
    MixingArguments mixing;
    Object norm;

    EntryArguments(Object entry, int iterations, float norm_eps, float eps)
        : mixing{item(entry, 0, 4), item(entry, 1, 4), item(entry, 2, 4), iterations, norm_eps, eps},
          norm(item(entry, 3, 4)) {}
    bool enters(Object streams) const {
        return Glance(streams).f32() && mixes(streams, mixing) && Glance(norm).floats();
    }
};

Rounding rounding_at(Object roundings, int i, int count) { return rounding_of(item(roundings, i, count)); }

// What kernels.attention_inputs takes after the streams.
struct InputArguments {
    static constexpr int kCount = 13;
    EntryArguments entry;
    StoredPair wq_a, wq_b, wkv;
    Object q_norm, kv_norm, cos, sin, roundings, positions, to_compressors;
    index_t heads;
    std::vector<Compressor> compressors;

    InputArguments(Object a, int iterations, float norm_eps, float eps)
        : entry(item(a, 0, kCount), iterations, norm_eps, eps), wq_a(item(a, 1, kCount)), wq_b(item(a, 3, kCount)),
          wkv(item(a, 4, kCount)), q_norm(item(a, 2, kCount)), kv_norm(item(a, 5, kCount)), cos(item(a, 6, kCount)),
          sin(item(a, 7, kCount)), roundings(item(a, 9, kCount)), positions(item(a, 11, kCount)),
          to_compressors(item(a, 12, kCount)), heads(nb::cast<index_t>(item(a, 8, kCount))) {
        for (Object parts : nb::borrow<nb::tuple>(item(a, 10, kCount))) compressors.emplace_back(parts);
    }
    bool covered(Object streams) const {
        for (const Compressor& c : compressors)
            if (!c.readable()) return false;
        return entry.enters(streams) && wq_a.readable() && wq_b.readable() && wkv.readable();
    }
    // Of these streams; where x, post, comb and the compressors' rows go is not set.
    AttentionInputs parts(const Streams& streams) const {
        const index_t tokens = streams.tokens, width = streams.width;
        AttentionInputs a{{static_cast<const float*>(streams.x.memory()), tokens, streams.n, width,
                           streams.entry(entry.norm, nullptr, static_cast<float*>(nullptr), static_cast<float*>(nullptr))},
                          matrix(wq_a, "wq_a"), matrix(wq_b, "wq_b"), matrix(wkv, "wkv"), rounding_at(roundings, 0, 3),
                          rounding_at(roundings, 1, 3), rounding_at(roundings, 2, 3), rounding_of(to_compressors), {}, {},
                          angles_of(Argument(cos, "cos"), Argument(sin, "sin"), tokens), heads,
                          streams.mixing.norm_eps, nullptr, {}};
        streams.x.check(width == a.wq_a.columns && width == a.wkv.columns, "does not fit wq_a and wkv");
        streams.x.check(a.wq_b.columns == a.wq_a.rows && heads > 0 && a.wq_b.rows % heads == 0, "does not fit wq_b");
        streams.x.check(2 * a.angles.pairs <= a.wkv.rows && 2 * a.angles.pairs <= a.wq_b.rows / heads,
                        "is turned by too much");
        a.q_norm = norm_weight(Argument(q_norm, "q_norm"), a.wq_a.rows);
        a.kv_norm = norm_weight(Argument(kv_norm, "kv_norm"), a.wkv.rows);
        if (!compressors.empty()) a.positions = positions_of(Argument(positions, "positions"), tokens);
        for (const Compressor& c : compressors) a.compressors.push_back(c.inputs(width));
        return a;
    }
};

// streams [..., n, D] f32 -> x [..., D], post, comb, qr [..., R], q [..., heads, C], kv [..., C] and rows [..., 2 C']
// of each compressor, in place.
bool py_attention_inputs(Object streams_object, Object inputs, int iterations, float norm_eps, float eps, Object x,
                         Object post, Object comb, Object qr, Object q, Object kv, nb::list rows) {
    const InputArguments from(inputs, iterations, norm_eps, eps);
    if (!from.covered(streams_object)) return false;
    const Streams streams(streams_object, from.entry.mixing);
    const index_t tokens = streams.tokens;
    AttentionInputs a = from.parts(streams);
    a.from.entry.input = output(Argument(x, "x"), tokens * streams.width);
    a.from.entry.post = output(Argument(post, "post"), tokens * streams.n);
    a.from.entry.comb = output(Argument(comb, "comb"), tokens * streams.n * streams.n);
    streams.x.check(rows.size() == a.compressors.size(), "has not rows for each compressor");
    for (std::size_t i = 0; i < rows.size(); ++i)
        a.compressors[i].y = output(Argument(rows[i], "rows"), tokens * 2 * a.compressors[i].wkv.rows);
    float *to_qr = output(Argument(qr, "qr"), tokens * a.wq_a.rows),
          *to_q = output(Argument(q, "q"), tokens * a.wq_b.rows),
          *to_kv = output(Argument(kv, "kv"), tokens * a.wkv.rows);
    nb::gil_scoped_release release;
    attention_inputs(a, to_qr, to_q, to_kv);
    return true;
}

// What kernels.attention takes after the queries.
struct SeenArguments {
    static constexpr int kCount = 14;
    AttentionArguments seen;
    Rounding rounding;
    Object cos, sin, roundings;
    StoredPair wo_a, wo_b;
    index_t groups;

    explicit SeenArguments(Object a)
        : seen{item(a, 0, kCount), item(a, 1, kCount), item(a, 2, kCount), item(a, 3, kCount), item(a, 4, kCount),
               item(a, 5, kCount), nb::cast<float>(item(a, 6, kCount)), false},
          rounding(rounding_of(item(a, 7, kCount))), cos(item(a, 8, kCount)), sin(item(a, 9, kCount)),
          roundings(item(a, 13, kCount)), wo_a(item(a, 10, kCount)), wo_b(item(a, 12, kCount)),
          groups(nb::cast<index_t>(item(a, 11, kCount))) {
        seen.round = rounding == Rounding::Bf16;
    }
    bool covered() const {
        return rounding != Rounding::Fp8 && attends(seen) && wo_a.readable() && wo_b.readable() && !shares_scales();
    }
    AttentionOutput output(index_t tokens, index_t heads, index_t width) const {
        const AttentionOutput out{matrix(wo_a, "wo_a", groups), matrix(wo_b, "wo_b"), rounding_at(roundings, 0, 2),
                                  rounding_at(roundings, 1, 2),
                                  angles_of(Argument(cos, "cos"), Argument(sin, "sin"), tokens), groups};
        const Argument weight(wo_a.weight, "wo_a");
        weight.check(out.wo_a.columns * groups == heads * width && 2 * out.angles.pairs <= width, "does not fit q");
        weight.check(out.wo_b.columns == groups * out.wo_a.rows, "does not fit wo_b");
        return out;
    }

private:
    // Whether groups that are no whole number of FP8 blocks share scales with their neighbours.
    bool shares_scales() const {
        const Glance w(wo_a.weight);
        return w.is(dlpack::Code::E4M3, 8) && (groups < 1 || w.shape[0] / groups % kFp8Block != 0);
    }
};

// q [B, T, H, C] f32 and what it sees -> y [B, T, D] f32, in place.
bool py_attention(Object q_object, Object rest, Object y) {
    const SeenArguments from(rest);
    const Glance queries(q_object);
    if (!queries.f32() || !queries.gapless() || !queries.some() || !from.covered()) return false;
    const Attention a = attention_of(queries_of(Argument(q_object, "q")), from.seen);
    const AttentionOutput out = from.output(a.batch * a.tokens, a.heads, a.width);
    float* to = output(Argument(y, "y"), a.batch * a.tokens * out.wo_b.rows);
    nb::gil_scoped_release release;
    attention(a, out, to);
    return true;
}

// x [..., D], ape [m, C], positions [...] int64 -> y [..., 2C] f32, in place.
bool py_compressor_inputs(Object x_object, Object parts, Object positions, Object rounding, Object y) {
    const Compressor compressor(parts);
    if (!compressor.readable() || !Glance(x_object).floats()) return false;
    const Argument x(x_object, "x");
    const Activations rows = rows_of(x);
    CompressorInputs c = compressor.inputs(x.last());
    c.y = output(Argument(y, "y"), rows.count * 2 * c.wkv.rows);
    const index_t* at = positions_of(Argument(positions, "positions"), rows.count);
    const Rounding how = rounding_of(rounding);
    nb::gil_scoped_release release;
    compressor_inputs(c, how, at, rows);
    return true;
}

// pending [B, L, 2C'], tokens [B, S, m] -> y [B, S, C] f32, in place.
bool py_compressor_entries(Object pending_object, Object tokens_object, Object norm, Object cos, Object sin,
                           bool overlapping, float eps, Object y) {
    const Glance held(pending_object);
    if (!held.f32() || held.ndim != 3 || !held.some() || !Glance(norm).floats() || !Glance(tokens_object).gapless())
        return false;
    const Argument pending(pending_object, "pending", Layout::Rows), tokens(tokens_object, "tokens"), gain(norm, "norm");
    const index_t width = gain.size();
    pending.check(pending.last() == (overlapping ? 4 : 2) * width, "does not fit the norm");
    tokens.check(tokens.ndim == 3 && tokens.shape[0] == pending.shape[0], "is not [B, S, m]");
    tokens.check(tokens.last() > 0 && (!overlapping || tokens.last() % 2 == 0), "is not a number of blocks");
    const index_t* rows = tokens.integers();
    for (index_t i = 0; i < tokens.size(); ++i)
        tokens.check(rows[i] >= -1 && rows[i] < pending.shape[1], "names a row that does not exist");
    const CompressorEntries c{{{pending.memory(), Type::F32, pending.strides[1]}, pending.strides[0]},
                              rows, tokens.shape[0], tokens.shape[1], tokens.last(), width, overlapping,
                              norm_weight(gain, width),
                              angles_of(Argument(cos, "cos"), Argument(sin, "sin"), tokens.shape[0] * tokens.shape[1]),
                              eps};
    pending.check(2 * c.angles.pairs <= width, "is turned by too much");
    float* to = output(Argument(y, "y"), c.batch * c.blocks * width);
    nb::gil_scoped_release release;
    compressor_entries(c, to);
    return true;
}

// What kernels.index_queries takes after x and qr.
struct IndexArguments {
    static constexpr int kCount = 7;
    StoredPair wq_b, weights_proj;
    index_t heads;
    Object cos, sin, roundings;
    float scale;

    explicit IndexArguments(Object a)
        : wq_b(item(a, 0, kCount)), weights_proj(item(a, 1, kCount)), heads(nb::cast<index_t>(item(a, 2, kCount))),
          cos(item(a, 3, kCount)), sin(item(a, 4, kCount)), roundings(item(a, 6, kCount)),
          scale(nb::cast<float>(item(a, 5, kCount))) {}
    bool readable() const { return wq_b.readable() && weights_proj.readable(); }
};

// x [..., D], qr [..., R] f32 -> q [..., H, C], weights [..., H] f32, in place.
bool py_index_queries(Object x_object, Object qr_object, Object rest, Object q, Object weights) {
    const IndexArguments from(rest);
    const Glance hidden(x_object), rank(qr_object);
    if (!hidden.f32() || !hidden.gapless() || !hidden.some() || !rank.f32() || !rank.gapless() || !from.readable())
        return false;
    const Argument x(x_object, "x"), qr(qr_object, "qr");
    const Activations rows = rows_of(x), low = rows_of(qr);
    const IndexQueries a{matrix(from.wq_b, "wq_b"), matrix(from.weights_proj, "weights_proj"),
                         rounding_at(from.roundings, 0, 2), rounding_at(from.roundings, 1, 2),
                         angles_of(Argument(from.cos, "cos"), Argument(from.sin, "sin"), rows.count), from.heads,
                         from.scale};
    qr.check(low.count == rows.count && a.wq_b.columns == low.columns, "does not fit x and wq_b");
    x.check(a.weights_proj.columns == rows.columns && a.weights_proj.rows == a.heads, "does not fit weights_proj");
    x.check(a.heads > 0 && a.wq_b.rows % a.heads == 0, "has not as many heads");
    const index_t width = a.wq_b.rows / a.heads;
    x.check(width > 0 && (width & (width - 1)) == 0, "has heads of a width that is no power of two");
    x.check(2 * a.angles.pairs <= width, "is turned by too much");
    float *to_q = output(Argument(q, "q"), rows.count * a.wq_b.rows),
          *to_weights = output(Argument(weights, "weights"), rows.count * a.heads);
    nb::gil_scoped_release release;
    index_queries(a, rows, low, to_q, to_weights);
    return true;
}

// The weights (w1, w3, w2) of experts.
struct ExpertWeights {
    StoredPair w1, w3, w2;

    explicit ExpertWeights(Object parts) : w1(item(parts, 0, 3)), w3(item(parts, 1, 3)), w2(item(parts, 2, 3)) {}
    bool readable() const { return w1.readable() && w3.readable() && w2.readable(); }
};

// What kernels.moe takes after x.
struct MoeArguments {
    static constexpr int kCount = 9;
    Object router, bias, chosen, roundings;
    index_t choices;
    float scaling, limit;
    ExpertWeights routed, shared;

    explicit MoeArguments(Object a)
        : router(item(a, 0, kCount)), bias(item(a, 1, kCount)), chosen(item(a, 2, kCount)),
          roundings(item(a, 8, kCount)), choices(nb::cast<index_t>(item(a, 3, kCount))),
          scaling(nb::cast<float>(item(a, 4, kCount))), limit(nb::cast<float>(item(a, 7, kCount))),
          routed(item(a, 5, kCount)), shared(item(a, 6, kCount)) {}
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
                rounding_at(roundings, 1, 2)};
    m.gate = {limit, rounding_at(roundings, 0, 2)};
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

// x [..., D] f32 -> y [..., D] f32, in place.
bool py_moe(Object x_object, Object experts, Object y) {
    const MoeArguments from(experts);
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

StreamEntry entry_of(const Streams& s, Object norm) {
    return s.entry(norm, nullptr, static_cast<float*>(nullptr), static_cast<float*>(nullptr));
}

// From attention's output [..., D] f32, and the post and comb of its streams [..., n, D], to the streams y.
bool py_hc_moe(Object output_object, Object streams_object, Object post, Object comb, Object entry, Object experts,
               int iterations, float norm_eps, float eps, Object y) {
    const EntryArguments entering(entry, iterations, norm_eps, eps);
    const MoeArguments from(experts);
    if (!Glance(output_object).f32() || !entering.enters(streams_object) || !from.readable()) return false;
    const Streams s(streams_object, entering.mixing);
    const StreamReturn back = return_of(s.x, output_object, post, comb);
    const Entering to{static_cast<const float*>(s.x.memory()), s.tokens, s.n, s.width, entry_of(s, entering.norm)};
    const MixtureOfExperts m = from.parts(s.tokens, s.width);
    float* result = output(Argument(y, "y"), s.x.size());
    nb::gil_scoped_release release;
    hc_moe(back, to, m, result);
    return true;
}

// Where rows [B, T, width] of a buffer go.
Buffer slot_of(Object object, const Streams& s, index_t width) {
    const Argument slot(object, "slot", Layout::Rows);
    slot.check(slot.ndim == 3 && slot.shape[0] == s.x.shape[0] && slot.shape[1] == s.x.shape[1] && slot.last() == width,
               "does not fit its rows");
    return {{slot.memory(), slot.type(), slot.strides[1]}, slot.strides[0]};
}

// streams [B, T, n, D] f32 -> those after the block, y; kv and the compressors' rows go into the slots.
bool py_block(Object streams_object, Object inputs, nb::tuple slots, Object seen, Object entry, Object experts,
              int iterations, float norm_eps, float eps, Object y) {
    const InputArguments from(inputs, iterations, norm_eps, eps);
    const SeenArguments sees(seen);
    const EntryArguments entering(entry, iterations, norm_eps, eps);
    const MoeArguments mixture(experts);
    if (!from.covered(streams_object) || !sees.covered() || !entering.enters(streams_object) || !mixture.readable())
        return false;
    const Streams s(streams_object, from.entry.mixing), next(streams_object, entering.mixing);
    s.x.check(s.x.ndim == 4, "is not [B, T, n, D]");
    Block b{from.parts(s), {}, {}, {}, entry_of(next, entering.norm), mixture.parts(s.tokens, s.width)};
    const index_t width = b.in.wkv.rows;
    s.x.check(b.in.wq_b.rows == b.in.heads * width, "does not fit wq_b and wkv");
    s.x.check(slots.size() == b.in.compressors.size() + 1, "has not a slot for kv and each compressor");
    b.slots.push_back(slot_of(slots[0], s, width));
    for (std::size_t i = 1; i < slots.size(); ++i)
        b.slots.push_back(slot_of(slots[i], s, 2 * b.in.compressors[i - 1].wkv.rows));
    b.seen = attention_of({{}, s.x.shape[0], s.x.shape[1], b.in.heads, width}, sees.seen);
    b.out = sees.output(s.tokens, b.in.heads, width);
    s.x.check(b.out.wo_b.rows == s.width, "does not fit wo_b");
    float* to = output(Argument(y, "y"), s.x.size());
    nb::gil_scoped_release release;
    block(b, to);
    return true;
}

}  // namespace

void add_composed_ops(nb::module_& m) {
    m.def("attention_inputs", &py_attention_inputs);
    m.def("attention", &py_attention);
    m.def("compressor_inputs", &py_compressor_inputs);
    m.def("compressor_entries", &py_compressor_entries);
    m.def("index_queries", &py_index_queries);
    m.def("moe", &py_moe);
    m.def("hc_moe", &py_hc_moe);
    m.def("block", &py_block);
}

}  // namespace fourfold
