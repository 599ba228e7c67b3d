// Everything that is no product with a stored matrix, against the scalar table, which the Python tests hold to the
// reference; and each row alone against the same row among others, bit for bit.
#include <algorithm>
#include <functional>
#include <limits>

#include "check.h"
#include "vector.h"

namespace fourfold {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr index_t kTails[] = {1, 2, 3, 4, 7, 8, 15, 16, 17, 31, 33, 64, 100, 130, 512};

// The results of rows [first, first + n), `width` floats each.
using Operation = std::function<void(const VectorKernels& k, index_t first, index_t n, float* y)>;

// Greatest difference in units of the greatest value of the row; infinite where only one of two is NaN.
double difference(const std::vector<float>& got, const std::vector<float>& want, index_t width) {
    double worst = 0;
    for (std::size_t row = 0; row < got.size(); row += width) {
        double size = 1e-30;
        for (index_t i = 0; i < width; ++i)
            if (std::isfinite(want[row + i])) size = std::max(size, std::fabs(double(want[row + i])));
        for (index_t i = 0; i < width; ++i) {
            const float a = got[row + i], b = want[row + i];
            if (a == b || (std::isnan(a) && std::isnan(b))) continue;
            const double error = std::fabs(double(a) - b) / size;
            worst = std::max(worst, std::isnan(error) ? kInf : error);
        }
    }
    return worst;
}

void check(const char* name, index_t size, index_t rows, index_t width, double bound, const Operation& operation) {
    std::vector<float> got(rows * width), want(rows * width), alone(rows * width);
    operation(vector_kernels(), 0, rows, got.data());
    operation(kScalarVectors, 0, rows, want.data());
    for (index_t i = 0; i < rows; ++i) operation(vector_kernels(), i, 1, &alone[i * width]);
    const double error = difference(got, want, width);
    report(error <= bound, "%s %td: differs from scalar by %.1e, at most %.0e", name, size, error, bound);
    report(same_bits(got.data(), alone.data(), rows * width), "%s %td: same bits alone", name, size);
}

std::vector<bf16> narrowed(const std::vector<float>& x) {
    std::vector<bf16> y(x.size());
    kScalarVectors.narrow(x.data(), index_t(x.size()), y.data());
    return y;
}

// Rows of either type: what an operation reads, and where it writes, as float in the end.
struct Input {
    std::vector<float> wide;
    std::vector<bf16> half;
    Type type;
    index_t stride;

    Input(Type type, std::vector<float> x, index_t stride)
        : wide(std::move(x)), half(narrowed(wide)), type(type), stride(stride) {}
    Rows rows() const {
        return {type == Type::F32 ? static_cast<const void*>(wide.data()) : half.data(), type, stride};
    }
};

// write(pointer of the input's type), then as float to y.
void as_float(Type type, index_t count, float* y, const std::function<void(void*)>& write) {
    if (type == Type::F32) return write(y);
    std::vector<bf16> half(count);
    write(half.data());
    kScalarVectors.widen(half.data(), type, count, false, y);
}

const char* with_type_name(const char* name, Type type) {
    static char text[64];
    std::snprintf(text, sizeof text, "%s %s", name, type == Type::F32 ? "f32" : "bf16");
    return text;
}

// A bf16 result may fall to either side of a tie.
double bound(Type type) { return type == Type::F32 ? 2e-6 : 8e-3; }

void check_conversions() {
    std::vector<float> x(4099);
    for (float& v : x) {
        const std::uint32_t bits = std::uint32_t(g_random()) & (whole(0, 1) ? ~0u : 0xffff8000u);  // ties too
        std::memcpy(&v, &bits, 4);
    }
    x[0] = kNan, x[1] = -kNan, x[2] = kInf, x[3] = -kInf, x[4] = -0.f, x[5] = 3.4e38f;
    const std::vector<bf16> half = narrowed(x);
    for (bool rounded : {false, true}) {
        check(rounded ? "round to bf16" : "copy", 1, index_t(x.size()), 1, 0,
              [&](const VectorKernels& k, index_t first, index_t n, float* y) {
                  k.widen(&x[first], Type::F32, n, rounded, y);
              });
    }
    check("widen", 1, index_t(x.size()), 1, 0, [&](const VectorKernels& k, index_t first, index_t n, float* y) {
        k.widen(&half[first], Type::Bf16, n, false, y);
    });
    check("narrow", 1, index_t(x.size()), 1, 0, [&](const VectorKernels& k, index_t first, index_t n, float* y) {
        as_float(Type::Bf16, n, y, [&](void* to) { k.narrow(&x[first], n, static_cast<bf16*>(to)); });
    });
}

void check_rows(Type type, index_t width) {
    constexpr index_t rows = 5;
    const index_t stride = width + 3;
    std::vector<float> values = normal(rows * stride);
    const Input x(type, values, stride);
    const std::vector<float> weight = normal(width), cos = normal(rows * width), sin = normal(rows * width);
    const auto run = [&](const char* name, double limit, index_t columns, auto&& call) {
        check(with_type_name(name, type), width, rows, columns, limit,
              [&](const VectorKernels& k, index_t first, index_t n, float* y) {
                  as_float(type, n * columns, y, [&](void* to) { call(k, first, n, to); });
              });
    };
    std::vector<float> scratch(4 * width + 16);
    run("rms_norm", bound(type), width, [&](const VectorKernels& k, index_t first, index_t n, void* y) {
        k.rms_norm(x.rows().from(first), n, width, weight.data(), Type::F32, 1e-6f, y);
    });
    const index_t pairs = (width + 2) / 4;
    if (width >= 2)
        run("rope", bound(type), width, [&](const VectorKernels& k, index_t first, index_t n, void* y) {
            k.rope(x.rows().from(first), n, 1, width, &cos[first * pairs], &sin[first * pairs], pairs, n % 2,
                   scratch.data(), y);
        });
    if ((width & (width - 1)) == 0)
        run("hadamard", bound(type), width, [&](const VectorKernels& k, index_t first, index_t n, void* y) {
            k.hadamard(x.rows().from(first), n, width, scratch.data(), y);
        });
    check(with_type_name("mean_square", type), width, rows, 1, 2e-6,
          [&](const VectorKernels& k, index_t first, index_t n, float* y) {
              for (index_t i = 0; i < n; ++i) y[i] = k.mean_square(x.rows().at(first + i), type, width);
          });
    // Rows of every size, and of odd values.
    for (index_t i = 0; i < width; ++i) {
        values[stride + i] *= 1e-9f, values[2 * stride + i] *= 1e30f;
        values[4 * stride + i] = i % 3 ? values[4 * stride + i] : 0.f;
    }
    values[3 * stride] = kInf, values[3 * stride + width / 2] = -kNan;
    const Input odd(type, values, stride);
    run("round_fp8", 0, width, [&](const VectorKernels& k, index_t first, index_t n, void* y) {
        k.round_fp8(odd.rows().from(first), n, width, 128, y);
    });
    run("round_fp4", 0, width, [&](const VectorKernels& k, index_t first, index_t n, void* y) {
        k.round_fp4(odd.rows().from(first), n, width, 32, y);
    });
}

void check_exponentials() {
    std::vector<float> x;
    for (float v = -130.f; v < 130.f; v += 0.37f) x.push_back(v);
    std::vector<float> got = x;
    vector_kernels().sqrt_softplus(got.data(), index_t(got.size()));
    double worst = 0;
    for (std::size_t i = 0; i < x.size(); ++i) {
        const double want = std::sqrt(std::max<double>(x[i], 0) + std::log1p(std::exp(-std::fabs(double(x[i])))));
        if (x[i] > -86.f) worst = std::max(worst, std::fabs(got[i] - want) / want);
    }
    report(worst <= 1e-6, "sqrt_softplus: %.1e from the true value, at most 1e-06", worst);
}

void check_pool(index_t m, index_t width) {
    constexpr index_t blocks = 3;
    const index_t stride = width + 5;
    const std::vector<float> values = normal(blocks * m * stride), scores = normal(blocks * m * stride);
    check("pool", width, blocks, width, 2e-6, [&](const VectorKernels& k, index_t first, index_t n, float* y) {
        const Rows v = {values.data(), Type::F32, stride}, s = {scores.data(), Type::F32, stride};
        k.pool(v.from(first * m), s.from(first * m), n, m, width, y);
    });
}

void check_dots(Type type, index_t width, index_t outputs) {
    constexpr index_t rows = 70;
    const std::vector<float> x = normal(rows * width);
    const Input w(type, normal(outputs * width), width);
    check(with_type_name("dots", type), width, rows, outputs, 4e-6,
          [&](const VectorKernels& k, index_t first, index_t n, float* y) {
              std::vector<float> scratch(kDotsScratch);
              k.dots({&x[first * width], Type::F32, width}, n, w.rows(), outputs, width, scratch.data(), y, outputs);
          });
}

void check_streams(index_t n) {
    constexpr index_t tokens = 9, width = 37;
    const index_t mixes = (2 + n) * n;
    const std::vector<float> mix = normal(tokens * mixes), scale = normal(3), base = normal(mixes);
    const StreamMixing mixing = {nullptr, scale.data(), base.data(), 20, 1e-6f, 1e-6f};
    check("stream_weights", n, tokens, mixes, 1e-5, [&](const VectorKernels& k, index_t first, index_t t, float* y) {
        std::vector<float> scratch(16 * mixes), pre(t * n), post(t * n), comb(t * n * n);
        k.stream_weights(mixing, n, &mix[first * mixes], t, scratch.data(), pre.data(), post.data(), comb.data());
        for (index_t i = 0; i < t; ++i) {
            float* to = std::copy_n(&pre[i * n], n, y + i * mixes);
            std::copy_n(&comb[i * n * n], n * n, std::copy_n(&post[i * n], n, to));
        }
    });
    check("head_weights", n, 1, n, 2e-6, [&](const VectorKernels& k, index_t, index_t, float* y) {
        k.head_weights(mixing, n, mix.data(), y);
    });
    for (Type type : {Type::F32, Type::Bf16}) {
        const Input streams(type, normal(n * width), width), output(type, normal(width), width);
        check(with_type_name("weighted_sum", type), n, 1, width, bound(type),
              [&](const VectorKernels& k, index_t, index_t, float* y) {
                  as_float(type, width, y,
                           [&](void* to) { k.weighted_sum(mix.data(), streams.rows().data, type, n, width, to); });
              });
        check(with_type_name("hc_post", type), n, 1, n * width, bound(type),
              [&](const VectorKernels& k, index_t, index_t, float* y) {
                  as_float(type, n * width, y, [&](void* to) {
                      k.hc_post(output.rows().data, streams.rows().data, type, mix.data(), base.data(), n, width, to);
                  });
              });
    }
}

void check_attention(index_t count, index_t width) {
    constexpr index_t heads = 6;
    const std::vector<float> q = normal(heads * width), values = normal(count * width), sink = normal(heads);
    std::vector<const float*> rows(count);
    for (index_t i = 0; i < count; ++i) rows[i] = &values[(i * 7 % count) * width];
    for (bool rounded : {false, true})
        check(rounded ? "attend with bf16 weights" : "attend", count, heads, width, rounded ? 8e-3 : 5e-6,
              [&](const VectorKernels& k, index_t first, index_t n, float* y) {
                  std::vector<float> scores(n * scores_stride(count)), slice(kSliceRows * kSliceWidth);
                  k.attend({&q[first * width], rows.data(), count, n, width, &sink[first], 0.3f, rounded,
                            scores.data(), slice.data(), y});
              });
}

void check_index_scores(Type type, index_t heads, index_t width) {
    constexpr index_t keys = 70;
    const Input key(type, normal(keys * width), width);
    const std::vector<float> q = normal(heads * width);
    std::vector<float> weights = normal(heads);
    for (float& w : weights) w = std::fabs(w);
    // A score may be small beside its terms: only those above zero count.
    check(with_type_name("index_scores", type), width, keys, 1, 1e-4,
          [&](const VectorKernels& k, index_t first, index_t n, float* y) {
              std::vector<float> scratch(32 * round_up(width, 16)), spread(4 * round_up(heads, 4));
              k.spread(weights.data(), Type::F32, heads, spread.data());
              k.index_scores(q.data(), spread.data(), heads, width, key.rows().from(first), n, scratch.data(), y);
          });
}

}  // namespace

void check_vectors() {
    check_conversions();
    check_exponentials();
    for (index_t width : kTails)
        for (Type type : {Type::F32, Type::Bf16}) check_rows(type, width);
    for (index_t m : {4, 128}) check_pool(m, 37);
    for (Type type : {Type::F32, Type::Bf16})
        for (index_t width : {1, 7, 130, 600}) check_dots(type, width, width % 23 + 8);
    for (index_t n : {2, 3, 4}) check_streams(n);
    for (index_t count : {1, 5, 130, 300})
        for (index_t width : {8, 21, 64}) check_attention(count, width);
    for (Type type : {Type::F32, Type::Bf16}) check_index_scores(type, 6, 40), check_index_scores(type, 8, 128);
}

}  // namespace fourfold
