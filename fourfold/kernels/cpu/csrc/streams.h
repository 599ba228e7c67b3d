// Arguments of the Python module's functions that are residual streams, and what mixes them.
#pragma once

#include "argument.h"

namespace fourfold {

inline float* output(const Argument& y, index_t size) {
    y.check(y.size() == size, "has the wrong size");
    return y.as<float>(dlpack::Code::Float);
}

inline void* output_like(const Argument& y, const Argument& x, index_t size) {
    y.check(y.size() == size, "has the wrong size");
    y.check(y.type() == x.type(), "has another dtype than x");
    return y.memory();
}

struct MixingArguments {
    nb::handle fn, scale, base;
    int iterations;
    float norm_eps, eps;
};

// Whether these streams can be mixed here.
inline bool mixes(nb::handle streams, const MixingArguments& m) {
    const Glance x(streams), fn(m.fn);
    return x.floats() && x.ndim >= 2 && x.shape[x.ndim - 2] <= kMostStreams && x.some() && fn.f32() && fn.gapless() &&
           Glance(m.scale).f32() && Glance(m.base).f32();
}

// n streams and what makes weights of them.
struct Streams {
    Argument x, fn, scale, base;
    index_t n, width, tokens;
    StreamMixing mixing;

    Streams(nb::handle streams, const MixingArguments& m)
        : x(streams, "streams"), fn(m.fn, "fn"), scale(m.scale, "scale"), base(m.base, "base") {
        x.check(x.ndim >= 2 && x.size() > 0, "is not [..., n, D]");
        n = x.shape[x.ndim - 2];
        width = x.last();
        tokens = x.size() / (n * width);
        x.check(n <= kMostStreams, "has too many streams");
        mixing = {fn.floats(), scale.floats(), base.floats(), m.iterations, m.norm_eps, m.eps};
    }
    void expect(index_t outputs, index_t scales) const {
        fn.check(fn.size() == outputs * n * width, "does not fit streams");
        scale.check(scale.size() == scales, "has the wrong size");
        base.check(base.size() == outputs, "does not fit streams");
    }
    Rows rows() const { return {x.memory(), x.type(), n * width}; }
    // How they enter a sublayer whose input has been checked.
    StreamEntry entry(nb::handle norm, void* input, float* post, float* comb) const {
        const Argument weight(norm, "norm");
        expect((2 + n) * n, 3);
        weight.check(weight.size() == width, "does not fit streams");
        return {mixing, weight.memory(), weight.type(), input, post, comb};
    }
    StreamEntry entry(nb::handle norm, void* input, nb::handle post, nb::handle comb) const {
        return entry(norm, input, output(Argument(post, "post"), tokens * n),
                     output(Argument(comb, "comb"), tokens * n * n));
    }
};

// What goes back to the streams x.
inline StreamReturn return_of(const Argument& x, nb::handle output, nb::handle post, nb::handle comb) {
    const Argument out(output, "output"), share(post, "post"), matrix(comb, "comb");
    const index_t n = x.shape[x.ndim - 2], tokens = x.size() / (n * x.last());
    out.check(out.size() == tokens * x.last() && out.type() == x.type(), "does not fit streams");
    share.check(share.size() == tokens * n, "does not fit streams");
    matrix.check(matrix.size() == tokens * n * n, "does not fit streams");
    return {out.memory(), x.memory(), share.floats(), matrix.floats()};
}

}  // namespace fourfold
