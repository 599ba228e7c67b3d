// NEON of ARMv8.0, which every aarch64 processor has.
#include <arm_neon.h>

#include "kernel.h"

namespace fourfold {
namespace {

// One load instead of a chain of comparisons: a chunk is as short as a group, so each has its scale to look up.
struct E8m0Table {
    float value[256];
    E8m0Table() {
        for (int e = 0; e < 256; ++e) value[e] = e8m0(std::uint8_t(e));
    }
};
const E8m0Table kE8m0;

struct Neon {
    static constexpr int lanes = 4;
    // Thirty-two registers: two accumulators for each pair of rows, and each row's codes half decoded.
    template <int M>
    static constexpr int height = M == 1 ? 4 : 2;
    static constexpr float e4m3_unit = 256.f;

    using F = float32x4_t;
    // The upper byte of each value as a half (the lower one is 0): nibbles 0, 2, 4, 6 of the four words in
    // `even`, the others in `odd`, four words' same nibble side by side.
    struct Codes {
        uint8x16_t even, odd;
    };
    struct Nan {
        uint8x16_t largest = vdupq_n_u8(0);
    };

    static F zero() { return vdupq_n_f32(0.f); }
    static F load(const float* p) { return vld1q_f32(p); }
    static F bf16(const bf16_t* p) { return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(p), 16)); }
    static F broadcast(float a) { return vdupq_n_f32(a); }
    static F fma(F a, F b, F c) { return vfmaq_f32(c, a, b); }
    static float sum(F f) { return vaddvq_f32(f); }
    static Codes codes(const std::uint8_t* p) {
        const uint8x16_t by_word = {0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15};
        const uint8x16_t table = {0x00, 0x38, 0x3c, 0x3e, 0x40, 0x42, 0x44, 0x46,
                                  0x80, 0xb8, 0xbc, 0xbe, 0xc0, 0xc2, 0xc4, 0xc6};
        const uint8x16_t bytes = vqtbl1q_u8(vld1q_u8(p), by_word);
        return {vqtbl1q_u8(table, vandq_u8(bytes, vdupq_n_u8(15))), vqtbl1q_u8(table, vshrq_n_u8(bytes, 4))};
    }
    template <int s>
    static F e2m1(const Codes& c) {
        const uint8x16_t half = s % 2 ? c.odd : c.even;
        const float16x8_t f =
            vreinterpretq_f16_u16(s < 4 ? vshll_n_u8(vget_low_u8(half), 8) : vshll_high_n_u8(half, 8));
        return s / 2 % 2 ? vcvt_high_f32_f16(f) : vcvt_f32_f16(vget_low_f16(f));
    }
    static F scales(const std::uint8_t* p) { return vdupq_n_f32(kE8m0.value[*p]); }
    // e4m3 shifted into a half is 2^-8 of its value, subnormals too.
    static void e4m3(const std::uint8_t* p, F* out, Nan& nan) {
        const int16x8_t mask = vdupq_n_s16(short(0xbf80));
        for (int half = 0; half < 2; ++half, p += 16, out += 4) {
            const uint8x16_t bytes = vld1q_u8(p);
            nan.largest = vmaxq_u8(nan.largest, vandq_u8(bytes, vdupq_n_u8(0x7f)));
            const int8x16_t b = vreinterpretq_s8_u8(bytes);
            const float16x8_t low =
                vreinterpretq_f16_s16(vandq_s16(vshll_n_s8(vget_low_s8(b), 7), mask));
            const float16x8_t high = vreinterpretq_f16_s16(vandq_s16(vshll_high_n_s8(b, 7), mask));
            out[0] = vcvt_f32_f16(vget_low_f16(low));
            out[1] = vcvt_high_f32_f16(low);
            out[2] = vcvt_f32_f16(vget_low_f16(high));
            out[3] = vcvt_high_f32_f16(high);
        }
    }
    static bool seen(const Nan& nan) { return vmaxvq_u8(nan.largest) == 0x7f; }
};

}  // namespace

const Kernels kNeonKernels = {"neon", pack<Neon>, rows<Neon>, to_bf16, round_fp8, swiglu, nullptr, nullptr, nullptr};
#ifdef FOURFOLD_NEONDOT
const Kernels kNeonDotKernels = {"neondot", pack<Neon>, rows<Neon>, to_bf16, round_fp8, swiglu, nullptr, &kNeonInt8, nullptr};
#endif

}  // namespace fourfold
