// Plain C++ that any compiler vectorises as far as its target allows: SSE2, NEON, or nothing.
#include <cmath>

#include "kernel.h"

namespace fourfold {
namespace {

constexpr float kE2m1[16] = {0.f,  0.5f,  1.f,  1.5f,  2.f,  3.f,  4.f,  6.f,
                             -0.f, -0.5f, -1.f, -1.5f, -2.f, -3.f, -4.f, -6.f};

struct E4m3Table {
    float value[256];
    E4m3Table() {
        for (int code = 0; code < 256; ++code) {
            const int exponent = code >> 3 & 15, mantissa = code & 7;
            float v = exponent ? std::ldexp(8.f + mantissa, exponent - 10) : std::ldexp(float(mantissa), -9);
            if ((code & 127) == 127) v = std::numeric_limits<float>::quiet_NaN();
            value[code] = code < 128 ? v : -v;
        }
    }
};
const E4m3Table kE4m3;

struct Scalar {
    static constexpr int lanes = 8;
    template <int M>
    static constexpr int height = 1;
    static constexpr float e4m3_unit = 1.f;

    struct F {
        float v[lanes];
    };
    struct Codes {
        std::uint32_t v[lanes];
    };
    struct Nan {};  // the table has NaNs, which spread by themselves

    static F zero() { return F{}; }
    static F load(const float* p) {
        F f;
        std::memcpy(f.v, p, sizeof f.v);
        return f;
    }
    static F bf16(const bf16_t* p) {
        F f;
        for (int j = 0; j < lanes; ++j) {
            const std::uint32_t bits = std::uint32_t{p[j]} << 16;
            std::memcpy(&f.v[j], &bits, sizeof bits);
        }
        return f;
    }
    static F broadcast(float a) {
        F f;
        for (float& v : f.v) v = a;
        return f;
    }
    static F fma(const F& a, const F& b, F c) {
        for (int j = 0; j < lanes; ++j) {
#ifdef __FP_FAST_FMAF
            c.v[j] = __builtin_fmaf(a.v[j], b.v[j], c.v[j]);
#else
            c.v[j] += a.v[j] * b.v[j];
#endif
        }
        return c;
    }
    static float sum(const F& f) {
        return ((f.v[0] + f.v[4]) + (f.v[2] + f.v[6])) + ((f.v[1] + f.v[5]) + (f.v[3] + f.v[7]));
    }
    static Codes codes(const std::uint8_t* p) {
        Codes c;
        for (int j = 0; j < lanes; ++j, p += 4)
            c.v[j] = p[0] | p[1] << 8 | p[2] << 16 | std::uint32_t{p[3]} << 24;
        return c;
    }
    template <int s>
    static F e2m1(const Codes& c) {
        F f;
        for (int j = 0; j < lanes; ++j) f.v[j] = kE2m1[c.v[j] >> 4 * s & 15];
        return f;
    }
    static F scales(const std::uint8_t* p) {
        F f;
        for (int j = 0; j < lanes; ++j) f.v[j] = e8m0(p[j / 4]);
        return f;
    }
    static void e4m3(const std::uint8_t* p, F* out, Nan&) {
        for (int i = 0; i < 32; ++i) out[i / lanes].v[i % lanes] = kE4m3.value[p[i]];
    }
    static bool seen(Nan) { return false; }
};

}  // namespace

const Kernels kScalarKernels = {"scalar", pack<Scalar>, rows<Scalar>, to_bf16, round_fp8, swiglu, nullptr, nullptr, nullptr};

}  // namespace fourfold
