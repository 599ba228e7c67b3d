// Plain C++ that any compiler vectorises as far as its target allows.
#include "vector_table.h"

namespace fourfold {
namespace {

float as_float(std::uint32_t bits) {
    float v;
    std::memcpy(&v, &bits, sizeof v);
    return v;
}
std::uint32_t as_bits(float v) {
    std::uint32_t bits;
    std::memcpy(&bits, &v, sizeof bits);
    return bits;
}

struct Scalar {
    static constexpr int lanes = 8, tile_rows = 2, value_vectors = 2;
    struct F {
        float v[lanes];
    };

    template <class Function>
    static F each(Function&& f) {
        F r;
        for (int i = 0; i < lanes; ++i) r.v[i] = f(i);
        return r;
    }

    static float one(float a) { return a; }
    static float one(bf16 a) { return as_float(std::uint32_t{a.bits} << 16); }
    static void put(float* p, float a) { *p = a; }
    static void put(bf16* p, float a) {
        const std::uint32_t bits = as_bits(a);
        p->bits = a != a ? 0x7fc0 : std::uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
    }

    static F zero() { return F{}; }
    static F broadcast(float a) {
        return each([&](int) { return a; });
    }
    template <class T>
    static F load(const T* p) {
        return each([&](int i) { return one(p[i]); });
    }
    template <class T>
    static F load_some(const T* p, index_t n) {
        F f{};
        for (index_t i = 0; i < n; ++i) f.v[i] = one(p[i]);
        return f;
    }
    template <class T>
    static void store(T* p, const F& f) {
        for (int i = 0; i < lanes; ++i) put(p + i, f.v[i]);
    }
    template <class T>
    static void store_some(T* p, const F& f, index_t n) {
        for (index_t i = 0; i < n; ++i) put(p + i, f.v[i]);
    }
    static F add(const F& a, const F& b) {
        return each([&](int i) { return a.v[i] + b.v[i]; });
    }
    static F sub(const F& a, const F& b) {
        return each([&](int i) { return a.v[i] - b.v[i]; });
    }
    static F mul(const F& a, const F& b) {
        return each([&](int i) { return a.v[i] * b.v[i]; });
    }
    static F div(const F& a, const F& b) {
        return each([&](int i) { return a.v[i] / b.v[i]; });
    }
    static F fma(const F& a, const F& b, const F& c) {
#ifdef __FP_FAST_FMAF
        return each([&](int i) { return __builtin_fmaf(a.v[i], b.v[i], c.v[i]); });
#else
        return each([&](int i) { return a.v[i] * b.v[i] + c.v[i]; });
#endif
    }
    static F sqrt(const F& a) {
        return each([&](int i) { return std::sqrt(a.v[i]); });
    }
    static F min(const F& a, const F& b) {
        return each([&](int i) { return a.v[i] < b.v[i] ? a.v[i] : b.v[i]; });
    }
    static F max(const F& a, const F& b) {
        return each([&](int i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; });
    }
    static F round(const F& a) {
        return each([&](int i) { return std::nearbyint(a.v[i]); });
    }
    static F abs(const F& a) {
        return each([&](int i) { return std::fabs(a.v[i]); });
    }
    static F copy_sign(const F& size, const F& sign) {
        return each([&](int i) { return std::copysign(size.v[i], sign.v[i]); });
    }
    static F binade(const F& a) {
        return each([&](int i) { return as_float(as_bits(a.v[i]) & 0x7f800000u); });
    }
    static F pow2(const F& a) {
        return each([&](int i) { return as_float(std::uint32_t(std::int32_t(a.v[i]) + 127) << 23); });
    }
    static F at_least(const F& a, const F& x, const F& limit) {
        return each([&](int i) { return x.v[i] < limit.v[i] ? 0.f : a.v[i]; });
    }
    template <int k>
    static F exchange(const F& a) {
        return each([&](int i) { return a.v[i ^ k]; });
    }
    static F to_bf16_grid(const F& a) {
        return each([&](int i) {
            bf16 b;
            put(&b, a.v[i]);
            return one(b);
        });
    }
    static float first(const F& a) { return a.v[0]; }
    static float sum(const F& f) {
        return ((f.v[0] + f.v[4]) + (f.v[2] + f.v[6])) + ((f.v[1] + f.v[5]) + (f.v[3] + f.v[7]));
    }
    static float largest(const F& a) {
        float most = a.v[0];
        for (float v : a.v) most = most > v ? most : v;
        return most;
    }
    static F sums(const F (&a)[lanes]) {
        return each([&](int i) { return sum(a[i]); });
    }
};

}  // namespace

const VectorKernels kScalarVectors = vector_table<Scalar>();

}  // namespace fourfold
