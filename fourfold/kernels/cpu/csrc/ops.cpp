#include "ops.h"

#include <algorithm>
#include <cstring>
#include <numeric>

#include "thread_pool.h"

namespace fourfold {
namespace {

// Weight bytes times rows of x below which sharing the work costs more than it saves.
constexpr index_t kWorthSharing = 192 * 1024;
constexpr index_t kAlignment = 32;  // of the pieces' first rows, as Bf16Products::rows wants it

// How a matrix's rows are cut into pieces for the threads; n is the number of x rows that each weight meets.
// Large ones: a piece decodes ahead of itself, and each reads all of x.
struct Partition {
    index_t piece, count;
    Partition(const Matrix& matrix, index_t n) {
        const index_t threads = ThreadPool::instance().threads();
        const index_t bytes = n <= 32 ? 1024 * 1024 : matrix.rows * matrix.row_bytes();
        const index_t fair = ceil_div(matrix.rows, 2 * threads);
        piece = std::min(bytes / std::max<index_t>(1, matrix.row_bytes()), fair);
        piece = threads == 1 ? std::max(kAlignment, matrix.rows) : std::max(kAlignment, round_up(piece, kAlignment));
        count = ceil_div(matrix.rows, piece);
    }
};

template <class Piece>
void share(index_t count, index_t work, Piece&& piece) {
    if (work < kWorthSharing)
        for (index_t i = 0; i < count; ++i) piece(i);
    else
        ThreadPool::instance().run(count, piece);
}

// piece(expert, first row, last row) for all experts and all rows of one of their matrices.
template <class Piece>
void share_experts(const std::vector<Expert>& experts, Matrix Expert::*which, index_t matrices, Piece&& piece) {
    struct Part {
        const Expert* expert;
        index_t begin, end;
    };
    thread_local std::vector<Part> kept;
    std::vector<Part>& parts = kept;
    parts.clear();
    index_t work = 0;
    for (const Expert& e : experts) {
        const Matrix& m = e.*which;
        const Partition part(m, e.end - e.begin);
        for (index_t begin = 0; begin < m.rows; begin += part.piece)
            parts.push_back({&e, begin, std::min(begin + part.piece, m.rows)});
        work += matrices * m.rows * m.row_bytes() * (e.end - e.begin);
    }
    share(index_t(parts.size()), work, [&](index_t i) { piece(*parts[i].expert, parts[i].begin, parts[i].end); });
}

// y[t] += the results of its visits, in their order.
void add_visits(const Visits& visits, const float* results, index_t n, index_t width, float* y) {
    const index_t count = index_t(visits.token.size());
    std::vector<index_t> begin(n + 1), order(count);
    for (const index_t token : visits.token) ++begin[token + 1];
    std::partial_sum(begin.begin(), begin.end(), begin.begin());
    std::vector<index_t> next(begin.begin(), begin.end() - 1);
    for (index_t i = 0; i < count; ++i) order[next[visits.token[i]]++] = i;
    share(n, count * width * index_t(sizeof(float)), [&](index_t t) {
        float* sum = y + t * width;
        for (index_t i = begin[t]; i < begin[t + 1]; ++i) {
            const float* result = results + order[i] * width;
            for (index_t o = 0; o < width; ++o) sum[o] += result[o];
        }
    });
}

// The inputs of experts' first or second matrices, by format and kernel: usually one, two with an FP8 shared expert.
struct Inputs {
    struct Kind {
        Format format;
        Products products;
        Operand operand;
        std::vector<Operand::Selection> selections;
    };
    std::vector<std::unique_ptr<Kind>> kinds;
    std::vector<Kind*> of;      // by expert
    std::vector<index_t> at;    // its selection

    Kind& kind_of(const Matrix& m, Rounding rounding) {
        const Products products = products_of(m, rounding);
        for (auto& kind : kinds)
            if (kind->products == products && kind->format == m.format)
                return *kind;
        kinds.push_back(std::make_unique<Kind>());
        kinds.back()->format = m.format;
        kinds.back()->products = products;
        return *kinds.back();
    }

    // rows: of x by visit, or null where row i belongs to visit i.
    void prepare(const std::vector<Expert>& experts, Matrix Expert::*which, const Activations& x, const index_t* rows,
                 Rounding rounding) {
        for (auto& kind : kinds) kind->selections.clear();
        of.resize(experts.size());
        at.resize(experts.size());
        for (std::size_t e = 0; e < experts.size(); ++e) {
            of[e] = &kind_of(experts[e].*which, rounding);
            at[e] = index_t(of[e]->selections.size());
            of[e]->selections.push_back({rows + experts[e].begin, experts[e].end - experts[e].begin, 0});
        }
        for (auto& kind : kinds) {
            if (kind->selections.empty()) continue;
            kind->operand.prepare(x, rounding, kind->format, kind->products);
            kind->operand.gather(kind->selections);
        }
    }

    void multiply(std::size_t e, const Matrix& m, index_t begin, index_t end, float* const* y) const {
        of[e]->operand.multiply(m, begin, end, of[e]->selections[at[e]], y);
    }
};

}  // namespace

void linear(const Matrix& matrix, const Activations& x, Rounding rounding, float* y, index_t stride) {
    grouped_linear(matrix, 1, x, rounding, y, stride);
}

void grouped_linear(const Matrix& stack, index_t groups, const Activations& x, Rounding rounding, float* y,
                    index_t stride) {
    thread_local Operand operand;
    thread_local std::vector<Operand::Selection> kept_selections;
    thread_local std::vector<index_t> rows;
    thread_local std::vector<float*> out;
    const index_t n = x.count / groups;
    if (n == 0) return;
    std::vector<Operand::Selection>& selections = kept_selections;  // a thread_local name is another variable on a helper
    selections.clear();
    rows.resize(x.count);
    out.resize(x.count);
    for (index_t g = 0; g < groups; ++g) {
        for (index_t i = 0; i < n; ++i) {
            rows[g * n + i] = i * groups + g;
            out[g * n + i] = y + i * (stride ? stride : groups * stack.rows) + g * stack.rows;
        }
        selections.push_back({rows.data() + g * n, n, 0});
    }
    operand.prepare(x, rounding, stack.format, products_of(stack, rounding));
    operand.gather(selections);
    const Operand& ready = operand;
    float* const* to = out.data();
    const Partition part(stack, n);
    share(groups * part.count, groups * stack.rows * stack.row_bytes() * n, [&](index_t piece) {
        const index_t g = piece / part.count, begin = piece % part.count * part.piece;
        ready.multiply(stack[g], begin, std::min(begin + part.piece, stack.rows), selections[g], to + g * n);
    });
}

void linears(const std::vector<Product>& products, const Activations& x) {
    struct Input {
        Format format;
        Rounding rounding;
        Operand operand;
        std::vector<Operand::Selection> all;
    };
    struct Part {
        const Product* product;
        const Input* input;
        float* const* y;
        index_t begin, end;
    };
    thread_local std::vector<std::unique_ptr<Input>> kept_inputs;
    thread_local std::vector<float*> kept_out;
    thread_local std::vector<Part> kept_parts;
    const index_t n = x.count;
    if (n == 0) return;
    std::vector<Part>& parts = kept_parts;
    std::size_t used = 0;  // of the inputs
    const auto input_of = [&](const Product& p) {
        for (std::size_t i = 0; i < used; ++i)
            if (kept_inputs[i]->format == p.matrix.format && kept_inputs[i]->rounding == p.rounding &&
                products_of(p.matrix, p.rounding) == kept_inputs[i]->operand.products())
                return kept_inputs[i].get();
        if (used == kept_inputs.size()) kept_inputs.push_back(std::make_unique<Input>());
        Input* input = kept_inputs[used++].get();
        input->format = p.matrix.format;
        input->rounding = p.rounding;
        input->operand.prepare(x, p.rounding, p.matrix.format, products_of(p.matrix, p.rounding));
        input->all.assign(1, {nullptr, n, 0});
        input->operand.gather(input->all);
        return input;
    };
    kept_out.resize(products.size() * n);
    parts.clear();
    index_t work = 0;
    for (std::size_t i = 0; i < products.size(); ++i) {
        const Product& p = products[i];
        float** y = kept_out.data() + index_t(i) * n;
        for (index_t t = 0; t < n; ++t) y[t] = p.y + t * (p.stride ? p.stride : p.matrix.rows);
        const Input* input = input_of(p);
        const Partition cut(p.matrix, n);
        for (index_t begin = 0; begin < p.matrix.rows; begin += cut.piece)
            parts.push_back({&p, input, y, begin, std::min(begin + cut.piece, p.matrix.rows)});
        work += p.matrix.rows * p.matrix.row_bytes() * n;
    }
    share(index_t(parts.size()), work, [&](index_t i) {
        const Part& p = parts[i];
        p.input->operand.multiply(p.product->matrix, p.begin, p.end, p.input->all[0], p.y);
    });
}

void visit_experts(const std::vector<Expert>& experts, const Visits& visits, const Gate& gate, const Activations& x,
                   float* y) {
    thread_local Inputs kept_first, kept_second;
    thread_local Scratch inner_memory, result_memory;
    thread_local std::vector<float*> kept_out;
    thread_local std::vector<index_t> kept_order;
    const index_t count = index_t(visits.token.size());
    if (count == 0) return;
    Inputs &first = kept_first, &second = kept_second;
    const index_t inner_width = experts[0].w1.rows, width = experts[0].w2.rows;
    float* inner = inner_memory.get<float>(2 * count * inner_width);
    float* results = result_memory.get<float>(count * width);
    std::vector<float*>& out = kept_out;
    std::vector<index_t>& order = kept_order;
    out.resize(3 * count);
    order.resize(count);
    for (index_t i = 0; i < count; ++i) {
        out[i] = inner + i * inner_width;
        out[count + i] = inner + (count + i) * inner_width;
        out[2 * count + i] = results + i * width;
        order[i] = i;
    }
    float *const *gates = out.data(), *const *ups = gates + count, *const *outs = ups + count;

    first.prepare(experts, &Expert::w1, x, visits.token.data(), gate.rounding);
    const Expert* base = experts.data();
    share_experts(experts, &Expert::w1, 2, [&](const Expert& e, index_t begin, index_t end) {
        first.multiply(&e - base, e.w1, begin, end, gates + e.begin);
        first.multiply(&e - base, e.w3, begin, end, ups + e.begin);
        for (index_t i = e.begin; i < e.end; ++i)
            kernels().swiglu(gates[i] + begin, ups[i] + begin, end - begin, gate.limit, visits.weight[i]);
    });
    second.prepare(experts, &Expert::w2, {inner, nullptr, count, inner_width, inner_width}, order.data(), gate.rounding);
    share_experts(experts, &Expert::w2, 1, [&](const Expert& e, index_t begin, index_t end) {
        second.multiply(&e - base, e.w2, begin, end, outs + e.begin);
    });
    add_visits(visits, results, x.count, width, y);
}

void route(const Stacks& stacks, const index_t* indices, const float* weights, index_t n, index_t choices,
           std::vector<Expert>& experts, Visits& visits) {
    thread_local std::vector<index_t> slots;
    slots.resize(n * choices);
    std::iota(slots.begin(), slots.end(), 0);
    if (stacks.places)
        slots.erase(std::remove_if(slots.begin(), slots.end(), [&](index_t i) { return stacks.places[indices[i]] < 0; }),
                    slots.end());
    // By expert, tokens ascending within one.
    std::stable_sort(slots.begin(), slots.end(), [&](index_t a, index_t b) { return indices[a] < indices[b]; });
    for (std::size_t i = 0; i < slots.size(); ++i) {
        const index_t expert = indices[slots[i]], at = index_t(visits.token.size());
        if (i == 0 || expert != indices[slots[i - 1]]) {
            const index_t row = stacks.places ? stacks.places[expert] : expert;
            experts.push_back({stacks.w1[row], stacks.w3[row], stacks.w2[row], at, at});
        }
        visits.token.push_back(slots[i] / choices);
        visits.weight.push_back(weights[slots[i]]);
        experts.back().end = at + 1;
    }
}

}  // namespace fourfold
