// The operations of tensor_ops.h in the Python module: checks tensors, lets go of the GIL.  Inputs may have any
// distance between their rows; results (y, ...) are contiguous and written in place.
#include "argument.h"
#include "streams.h"

namespace fourfold {
namespace {

using Object = nb::handle;

// Number of rows of x.
index_t count_of(const Argument& x) { return x.last() ? x.size() / x.last() : 0; }

void py_rms_norm(Object x_object, Object weight_object, float eps, Object y_object) {
    const Argument x(x_object, "x", Layout::Rows), y(y_object, "y");
    const void* weight = nullptr;
    Type type = Type::F32;
    if (!weight_object.is_none()) {
        const Argument w(weight_object, "weight");
        w.check(w.size() == x.last(), "does not fit x");
        weight = w.memory();
        type = w.type();
    }
    const Rows rows = x.rows();
    void* to = output_like(y, x, x.size());
    nb::gil_scoped_release release;
    rms_norm(rows, count_of(x), x.last(), weight, type, eps, to);
}

void py_rope(Object x_object, Object cos_object, Object sin_object, bool inverse, Object y_object) {
    const Argument x(x_object, "x", Layout::Rows), cos(cos_object, "cos"), sin(sin_object, "sin"), y(y_object, "y");
    cos.check(cos.ndim >= 1 && 2 * cos.last() <= x.last(), "turns more than x has");
    sin.check(sin.size() == cos.size(), "does not fit cos");
    const index_t pairs = cos.last(), tokens = pairs ? cos.size() / pairs : 0, rows = count_of(x);
    cos.check(tokens > 0 ? rows % tokens == 0 : rows == 0, "does not fit x");
    const Rows from = x.rows();
    const float *c = cos.floats(), *s = sin.floats();
    void* to = output_like(y, x, x.size());
    nb::gil_scoped_release release;
    if (tokens > 0) rope(from, tokens, rows / tokens, x.last(), c, s, pairs, inverse, to);
}

void py_hadamard(Object x_object, Object y_object) {
    const Argument x(x_object, "x", Layout::Rows), y(y_object, "y");
    x.check(x.last() > 0 && (x.last() & (x.last() - 1)) == 0, "has a width that is no power of two");
    const Rows rows = x.rows();
    void* to = output_like(y, x, x.size());
    nb::gil_scoped_release release;
    hadamard(rows, count_of(x), x.last(), to);
}

template <void (*round_rows)(Rows, index_t, index_t, index_t, void*)>
void py_round(Object x_object, index_t group, Object y_object) {
    const Argument x(x_object, "x", Layout::Rows), y(y_object, "y");
    x.check(group > 0, "cannot be rounded in groups of none");
    const Rows rows = x.rows();
    void* to = output_like(y, x, x.size());
    nb::gil_scoped_release release;
    round_rows(rows, count_of(x), x.last(), group, to);
}

int format_bits(int bits) {
    if (bits != 8 && bits != 4) throw nb::value_error("bits is neither 8 nor 4");
    return bits;
}

void py_pack_rows(Object x_object, index_t last, int bits, Object packed_object) {
    const Argument x(x_object, "x", Layout::Rows), packed(packed_object, "packed");
    x.check(last >= 0 && last <= x.last(), "has fewer values than stay as they are");
    x.check(format_bits(bits) == 8 || (x.last() - last) % 2 == 0, "has an odd number of values of 4 bits");
    const Rows rows = x.rows();
    const index_t n = count_of(x);
    auto* to = packed.as<std::uint8_t>(dlpack::Code::UInt);
    packed.check(packed.size() == n * row_bytes(x.last(), last, bits), "is not [..., row_bytes]");
    nb::gil_scoped_release release;
    pack_rows(rows, n, x.last(), last, bits, to);
}

void py_unpack_rows(Object packed_object, Object rows_object, index_t last, int bits, Object y_object) {
    const Argument packed(packed_object, "packed"), rows(rows_object, "rows"), y(y_object, "y");
    rows.check(rows.ndim == 1, "is not [n]");
    const index_t n = rows.size();
    const index_t* numbers = rows.integers();
    y.check(y.ndim == 2 && y.shape[0] == n && y.type() == Type::Bf16, "is not [n, C] bf16");
    y.check(last >= 0 && last <= y.last(), "has fewer values than stay as they are");
    packed.check(packed.ndim == 2 && packed.last() == row_bytes(y.last(), last, format_bits(bits)),
                 "is not [L, row_bytes]");
    for (index_t i = 0; i < n; ++i)
        rows.check(0 <= numbers[i] && numbers[i] < packed.shape[0], "names rows that do not exist");
    const auto* from = packed.as<const std::uint8_t>(dlpack::Code::UInt);
    auto* to = static_cast<bf16*>(y.memory());
    nb::gil_scoped_release release;
    unpack_rows(from, numbers, n, y.last(), last, bits, to);
}

void py_pool(Object values_object, Object scores_object, Object y_object) {
    const Argument values(values_object, "values", Layout::Rows), scores(scores_object, "scores", Layout::Rows);
    const Argument y(y_object, "y");
    values.check(values.ndim >= 2 && values.type() == Type::F32, "is not [..., m, C] float32");
    scores.check(scores.type() == Type::F32 && scores.size() == values.size() && scores.last() == values.last(),
                 "does not fit values");
    const index_t m = values.shape[values.ndim - 2], blocks = m ? count_of(values) / m : 0;
    const Rows v = values.rows(), s = scores.rows();
    float* to = output(y, blocks * values.last());
    nb::gil_scoped_release release;
    pool(v, s, blocks, m, values.last(), to);
}

// Scores and weights of the experts; chooses them too where there is a bias, else they have been chosen.
void py_route(Object x_object, Object weight_object, Object bias_object, Object indices_object, float scaling,
              Object scores_object, Object weights_object) {
    const Argument x(x_object, "x", Layout::Rows), weight(weight_object, "weight", Layout::Rows);
    const Argument indices(indices_object, "indices"), scores(scores_object, "scores");
    const Argument weights(weights_object, "weights");
    x.check(x.ndim == 2, "is not [N, D]");
    weight.check(weight.ndim == 2 && weight.last() == x.last(), "is not [E, D]");
    indices.check(indices.ndim == 2 && indices.shape[0] == x.shape[0], "is not [N, K]");
    const index_t n = x.shape[0], experts = weight.shape[0], k = indices.shape[1];
    auto* chosen = indices.as<index_t>(dlpack::Code::Int);
    const float* bias = nullptr;
    if (bias_object.is_none()) {
        for (index_t i = 0; i < n * k; ++i)
            indices.check(chosen[i] >= 0 && chosen[i] < experts, "names an expert that does not exist");
    } else {
        const Argument b(bias_object, "bias");
        b.check(b.size() == experts, "is not [E]");
        bias = b.floats();
        indices.check(k <= experts, "asks for more experts than there are");
    }
    const Rows from = x.rows(), w = weight.rows();
    float *all = output(scores, n * experts), *amounts = output(weights, n * k);
    nb::gil_scoped_release release;
    route_scores(from, n, w, experts, x.last(), all);
    if (bias) choose_experts(all, bias, n, experts, k, chosen);
    weigh_experts(all, chosen, n, experts, k, scaling, amounts);
}

// The mHC operations return False, and have done nothing, where the streams or their mixing are not ours.

bool py_hc_pre(Object streams, Object fn, Object scale, Object base, int iterations, float norm_eps, float eps,
               Object input_object, Object post_object, Object comb_object) {
    const MixingArguments mixing{fn, scale, base, iterations, norm_eps, eps};
    if (!mixes(streams, mixing)) return false;
    const Streams s(streams, mixing);
    const Argument input(input_object, "input"), post(post_object, "post"), comb(comb_object, "comb");
    s.expect((2 + s.n) * s.n, 3);
    void* in = output_like(input, s.x, s.tokens * s.width);
    float *back = output(post, s.tokens * s.n), *matrix = output(comb, s.tokens * s.n * s.n);
    nb::gil_scoped_release release;
    hc_pre(s.rows(), s.tokens, s.n, s.width, s.mixing, in, back, matrix);
    return true;
}

bool py_hc_head(Object streams, Object fn, Object scale, Object base, float norm_eps, float eps, Object y_object) {
    const MixingArguments mixing{fn, scale, base, 0, norm_eps, eps};
    if (!mixes(streams, mixing)) return false;
    const Streams s(streams, mixing);
    const Argument y(y_object, "y");
    s.expect(s.n, 1);
    void* to = output_like(y, s.x, s.tokens * s.width);
    nb::gil_scoped_release release;
    hc_head(s.rows(), s.tokens, s.n, s.width, s.mixing, to);
    return true;
}

void py_hc_post(Object output, Object streams, Object post, Object comb, Object y_object) {
    const Argument x(streams, "streams"), y(y_object, "y");
    x.check(x.ndim >= 2 && x.size() > 0, "is not [..., n, D]");
    const index_t n = x.shape[x.ndim - 2], width = x.last(), tokens = x.size() / (n * width);
    const StreamReturn back = return_of(x, output, post, comb);
    void* to = output_like(y, x, x.size());
    nb::gil_scoped_release release;
    hc_post(back.output, back.streams, x.type(), tokens, n, width, back.post, back.comb, to);
}

bool py_hc_input(Object streams, Object fn, Object scale, Object base, Object norm, int iterations, float norm_eps,
                 float eps, Object input, Object post, Object comb) {
    const MixingArguments mixing{fn, scale, base, iterations, norm_eps, eps};
    if (!mixes(streams, mixing) || !Glance(norm).floats()) return false;
    const Streams s(streams, mixing);
    const StreamEntry next = s.entry(norm, output_like(Argument(input, "input"), s.x, s.tokens * s.width), post, comb);
    nb::gil_scoped_release release;
    hc_next(nullptr, s.x.type(), s.tokens, s.n, s.width, next, s.x.memory());
    return true;
}

// The streams to which the output of the sublayer before has gone back -> y; then as py_hc_input.
bool py_hc_next(Object output, Object streams, Object post, Object comb, Object fn, Object scale, Object base,
                Object norm, int iterations, float norm_eps, float eps, Object y_object, Object input,
                Object next_post, Object next_comb) {
    const MixingArguments mixing{fn, scale, base, iterations, norm_eps, eps};
    if (!mixes(streams, mixing) || !Glance(norm).floats()) return false;
    const Streams s(streams, mixing);
    const StreamReturn back = return_of(s.x, output, post, comb);
    const StreamEntry next =
        s.entry(norm, output_like(Argument(input, "input"), s.x, s.tokens * s.width), next_post, next_comb);
    void* to = output_like(Argument(y_object, "y"), s.x, s.x.size());
    nb::gil_scoped_release release;
    hc_next(&back, s.x.type(), s.tokens, s.n, s.width, next, to);
    return true;
}

// A buffer [B, rows, width] whose sequences and rows may lie apart.
Buffer buffer(const Argument& b, index_t batch, index_t width) {
    b.check(b.ndim == 3 && b.shape[0] == batch && b.last() == width, "does not fit q");
    return {{b.memory(), b.type(), b.strides[1]}, b.strides[0]};
}

// ranges [B, T, 2], each empty or within 0 .. count.
const index_t* ranges(const Argument& r, index_t queries, index_t count) {
    r.check(r.size() == 2 * queries, "is not [B, T, 2]");
    const index_t* p = r.integers();
    for (index_t i = 0; i < queries; ++i)
        r.check(p[2 * i] >= p[2 * i + 1] || (p[2 * i] >= 0 && p[2 * i + 1] <= count), "names rows that do not exist");
    return p;
}

void py_sparse_attention(Object q_object, Object window, Object window_range, Object entries, Object entry_range,
                         Object entry_index, Object sink, float scale, bool round, Object y_object) {
    const Argument q(q_object, "q", Layout::Rows), y(y_object, "y");
    const Attention a = attention_of(queries_of(q), {window, window_range, entries, entry_range, entry_index, sink, scale, round});
    void* to = output_like(y, q, q.size());
    nb::gil_scoped_release release;
    sparse_attention(a, to);
}

void py_index_topk(Object q_object, Object weights_object, Object keys_object, Object visible_object,
                   Object indices_object) {
    const Argument q(q_object, "q", Layout::Rows), weights(weights_object, "weights");
    const Argument keys(keys_object, "keys", Layout::Rows), indices(indices_object, "indices");
    q.check(q.ndim == 4, "is not [B, T, H, C]");
    IndexChoice c{};
    c.q = q.rows();
    c.batch = q.shape[0], c.tokens = q.shape[1], c.heads = q.shape[2], c.width = q.shape[3];
    const index_t queries = c.batch * c.tokens;
    weights.check(weights.size() == queries * c.heads, "is not [B, T, H]");
    c.weights = weights.memory();
    c.weight_type = weights.type();
    c.keys = buffer(keys, c.batch, c.width);
    c.visible = ranges(Argument(visible_object, "visible"), queries, keys.shape[1]);
    indices.check(indices.ndim == 3 && indices.shape[0] == c.batch && indices.shape[1] == c.tokens,
                  "is not [B, T, k]");
    c.k = indices.last();
    auto* to = indices.as<index_t>(dlpack::Code::Int);
    nb::gil_scoped_release release;
    index_topk(c, to);
}

index_t py_draw(Object logits_object, float temperature, std::uint64_t key) {
    const Argument logits(logits_object, "logits");
    logits.check(logits.ndim == 1 && logits.size() > 0, "is not [V]");
    const float* from = logits.floats();
    nb::gil_scoped_release release;
    return draw(from, logits.size(), temperature, key);
}

}  // namespace

bool attends(const AttentionArguments& a) {
    return Glance(a.window).floats() && (a.entries.is_none() || Glance(a.entries).floats()) &&
           Glance(a.sink).f32();
}

Queries queries_of(const Argument& q) {
    q.check(q.ndim == 4, "is not [B, T, H, C]");
    return {q.rows(), q.shape[0], q.shape[1], q.shape[2], q.shape[3]};
}

Attention attention_of(const Queries& q, const AttentionArguments& from) {
    Attention a{};
    a.q = q.rows;
    a.batch = q.batch, a.tokens = q.tokens, a.heads = q.heads, a.width = q.width;
    const Argument window(from.window, "window", Layout::Rows), sink(from.sink, "sink");
    a.window = a.entries = buffer(window, a.batch, a.width);
    const index_t queries = a.batch * a.tokens;
    a.window_range = ranges(Argument(from.window_range, "window_range"), queries, window.shape[1]);
    if (!from.entries.is_none()) {
        const Argument entries(from.entries, "entries", Layout::Rows);
        a.entries = buffer(entries, a.batch, a.width);
        if (!from.entry_index.is_none()) {
            const Argument index(from.entry_index, "entry_index");
            index.check(index.ndim == 3 && index.shape[0] == a.batch && index.shape[1] == a.tokens,
                        "is not [B, T, K]");
            a.entry_index = index.integers();
            a.choices = index.shape[2];
            for (index_t i = 0; i < queries * a.choices; ++i)
                index.check(a.entry_index[i] < entries.shape[1], "names entries that do not exist");
        } else if (!from.entry_range.is_none()) {
            a.entry_range = ranges(Argument(from.entry_range, "entry_range"), queries, entries.shape[1]);
        }
    }
    sink.check(sink.size() == a.heads, "is not [H]");
    a.sink = sink.floats();
    a.scale = from.scale;
    a.round = from.round;
    return a;
}

void add_tensor_ops(nb::module_& m) {
    const nb::arg given;
    const auto maybe = nb::arg().none();
    m.def("rms_norm", &py_rms_norm, given, maybe, given, given);
    m.def("rope", &py_rope);
    m.def("hadamard", &py_hadamard);
    m.def("round_fp8", &py_round<round_fp8>);
    m.def("round_fp4", &py_round<round_fp4>);
    m.def("pack_rows", &py_pack_rows);
    m.def("unpack_rows", &py_unpack_rows);
    m.def("pool", &py_pool);
    m.def("route", &py_route, given, given, maybe, given, given, given, given);
    m.def("hc_pre", &py_hc_pre);
    m.def("hc_post", &py_hc_post);
    m.def("hc_input", &py_hc_input);
    m.def("hc_next", &py_hc_next);
    m.def("hc_head", &py_hc_head);
    m.def("sparse_attention", &py_sparse_attention, given, given, given, maybe, maybe, maybe, given, given, given,
          given);
    m.def("index_topk", &py_index_topk);
    m.def("draw", &py_draw);
}

}  // namespace fourfold
