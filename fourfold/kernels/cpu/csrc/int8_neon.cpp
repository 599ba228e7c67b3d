// NEON with dot products (ARMv8.2: Neoverse N1, Kunpeng 920 and later).
#include <arm_neon.h>

#include "kernel_int8.h"

namespace fourfold {
namespace {

struct Neon {
    static constexpr int lanes = 4, offset = 0, panel = 4, tile = 3;
    using I = int8x16_t;
    using F = float32x4_t;
    using Sum = int32x4_t;

    static I load(const std::uint8_t* p) { return vreinterpretq_s8_u8(vld1q_u8(p)); }
    static void store(std::uint8_t* p, I v) { vst1q_u8(p, vreinterpretq_u8_s8(v)); }
    static void turn(I (&v)[4]) {
        const auto words = [](I a) { return vreinterpretq_s32_s8(a); };
        const auto pairs = [](int32x4_t a) { return vreinterpretq_s64_s32(a); };
        const int64x2_t a = pairs(vzip1q_s32(words(v[0]), words(v[1]))), b = pairs(vzip2q_s32(words(v[0]), words(v[1])));
        const int64x2_t c = pairs(vzip1q_s32(words(v[2]), words(v[3]))), d = pairs(vzip2q_s32(words(v[2]), words(v[3])));
        v[0] = vreinterpretq_s8_s64(vzip1q_s64(a, c)), v[1] = vreinterpretq_s8_s64(vzip2q_s64(a, c));
        v[2] = vreinterpretq_s8_s64(vzip1q_s64(b, d)), v[3] = vreinterpretq_s8_s64(vzip2q_s64(b, d));
    }
    static I values(uint8x16_t codes) {
        const int8x16_t table = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};
        return vqtbl1q_s8(table, codes);
    }
    static I low(I codes) { return values(vandq_u8(vreinterpretq_u8_s8(codes), vdupq_n_u8(15))); }
    static I high(I codes) { return values(vshrq_n_u8(vreinterpretq_u8_s8(codes), 4)); }
    static Sum start(const std::uint8_t*) { return vdupq_n_s32(0); }
    template <int v>
    static void add(Sum& sum, I weights, I x) {
        sum = vdotq_s32(sum, weights, x);
    }
    static F value(Sum sum) { return vcvtq_f32_s32(sum); }

    static F zero() { return vdupq_n_f32(0.f); }
    static F load(const float* p) { return vld1q_f32(p); }
    static void store(float* p, F v) { vst1q_f32(p, v); }
    static F mul(F a, F b) { return vmulq_f32(a, b); }
    static F fma(F a, F b, F c) { return vfmaq_f32(c, a, b); }
    static float sum(F f) { return vaddvq_f32(f); }
    static F scales(const std::uint8_t* p) {
        std::uint32_t four;
        std::memcpy(&four, p, sizeof four);
        const uint16x4_t codes = vget_low_u16(vmovl_u8(vcreate_u8(four)));
        const uint32x4_t bits = vshlq_n_u32(vmovl_u16(codes), 23);
        // Exponent 0 is 2^-127, which float32 writes as 0x00400000; 255 is NaN.
        const uint32x4_t nan = vceqq_u32(bits, vdupq_n_u32(0x7f800000));
        return vreinterpretq_f32_u32(vbslq_u32(nan, vdupq_n_u32(0x7fc00000), vmaxq_u32(bits, vdupq_n_u32(0x00400000))));
    }
};

}  // namespace

const Int8Products kNeonInt8 = {packed_bytes<Neon>, pack_int8<Neon>, rows_int8<Neon>};

}  // namespace fourfold
