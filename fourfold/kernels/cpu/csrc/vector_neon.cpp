// NEON of ARMv8.0, which every aarch64 processor has.
#include <arm_neon.h>

#include "vector_table.h"

namespace fourfold {
namespace {

struct Neon {
    // Thirty-two registers: sixteen chains, and what meets in them.
    static constexpr int lanes = 4, tile_rows = 4, value_vectors = 4;
    using F = float32x4_t;

    static F zero() { return vdupq_n_f32(0.f); }
    static F broadcast(float a) { return vdupq_n_f32(a); }
    static F load(const float* p) { return vld1q_f32(p); }
    static F load(const bf16* p) { return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(&p->bits), 16)); }
    static void store(float* p, F v) { vst1q_f32(p, v); }
    static void store(bf16* p, F v) {
        vst1_u16(&p->bits, vshrn_n_u32(vreinterpretq_u32_f32(to_bf16_grid(v)), 16));
    }
    template <class T>
    static F load_some(const T* p, index_t n) {
        T some[lanes] = {};
        std::memcpy(some, p, n * sizeof(T));
        return load(some);
    }
    template <class T>
    static void store_some(T* p, F v, index_t n) {
        T some[lanes];
        store(some, v);
        std::memcpy(p, some, n * sizeof(T));
    }
    static F add(F a, F b) { return vaddq_f32(a, b); }
    static F sub(F a, F b) { return vsubq_f32(a, b); }
    static F mul(F a, F b) { return vmulq_f32(a, b); }
    static F div(F a, F b) { return vdivq_f32(a, b); }
    static F fma(F a, F b, F c) { return vfmaq_f32(c, a, b); }
    static F sqrt(F a) { return vsqrtq_f32(a); }
    // fmin and fmax would give the NaN, fminnm and fmaxnm the other one, wherever it stands.
    static F min(F a, F b) { return vbslq_f32(vcltq_f32(a, b), a, b); }
    static F max(F a, F b) { return vbslq_f32(vcgtq_f32(a, b), a, b); }
    static F round(F a) { return vrndnq_f32(a); }
    static F abs(F a) { return vabsq_f32(a); }
    static F copy_sign(F size, F sign) { return vbslq_f32(vdupq_n_u32(0x80000000), sign, size); }
    static F binade(F a) {
        return vreinterpretq_f32_u32(vandq_u32(vreinterpretq_u32_f32(a), vdupq_n_u32(0x7f800000)));
    }
    static F pow2(F a) {
        return vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(vcvtq_s32_f32(a), vdupq_n_s32(127)), 23));
    }
    static F at_least(F a, F x, F limit) {
        return vreinterpretq_f32_u32(vbicq_u32(vreinterpretq_u32_f32(a), vcltq_f32(x, limit)));
    }
    template <int k>
    static F exchange(F a) {
        if (k & 1) a = vrev64q_f32(a);
        return k & 2 ? vextq_f32(a, a, 2) : a;
    }
    static F to_bf16_grid(F a) {
        const uint32x4_t bits = vreinterpretq_u32_f32(a);
        const uint32x4_t odd = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
        const uint32x4_t up = vaddq_u32(bits, vaddq_u32(odd, vdupq_n_u32(0x7fff)));
        const uint32x4_t near = vandq_u32(up, vdupq_n_u32(0xffff0000));
        return vreinterpretq_f32_u32(vbslq_u32(vceqq_f32(a, a), near, vdupq_n_u32(0x7fc00000)));
    }
    static float first(F a) { return vgetq_lane_f32(a, 0); }
    static float sum(F a) {
        const F v[lanes] = {a, a, a, a};
        return first(sums(v));
    }
    static float largest(F a) { return vmaxvq_f32(a); }
    static F sums(const F (&v)[lanes]) { return vpaddq_f32(vpaddq_f32(v[0], v[1]), vpaddq_f32(v[2], v[3])); }
};

}  // namespace

const VectorKernels kNeonVectors = vector_table<Neon>();

}  // namespace fourfold
