// AVX-512 F, BW, VL and DQ (2017 and later).
#include <immintrin.h>

#include "kernel.h"

namespace fourfold {
namespace {

struct Avx512 {
    static constexpr int lanes = 16;
    template <int M>
    static constexpr int height = M <= 2 ? 4 : 2;
    static constexpr float e4m3_unit = 256.f;

    using F = __m512;
    using Codes = __m512i;
    struct Nan {
        __m256i largest = _mm256_setzero_si256();
    };

    static F zero() { return _mm512_setzero_ps(); }
    static F load(const float* p) { return _mm512_loadu_ps(p); }
    static F bf16(const bf16_t* p) {
        const __m512i words = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
        return _mm512_castsi512_ps(_mm512_slli_epi32(words, 16));
    }
    static F broadcast(float a) { return _mm512_set1_ps(a); }
    static F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
    static float sum(F f) {
        const __m256 w = _mm256_add_ps(_mm512_castps512_ps256(f), _mm512_extractf32x8_ps(f, 1));
        __m128 v = _mm_add_ps(_mm256_castps256_ps128(w), _mm256_extractf128_ps(w, 1));
        v = _mm_add_ps(v, _mm_movehl_ps(v, v));
        return _mm_cvtss_f32(_mm_add_ss(v, _mm_movehdup_ps(v)));
    }
    static Codes codes(const std::uint8_t* p) { return _mm512_loadu_si512(p); }
    // vpermps looks at the low four bits of each lane: a whole e2m1 code, no mask needed.
    template <int s>
    static F e2m1(Codes c) {
        const __m512 table = _mm512_setr_ps(0.f, 0.5f, 1.f, 1.5f, 2.f, 3.f, 4.f, 6.f, -0.f, -0.5f, -1.f, -1.5f,
                                            -2.f, -3.f, -4.f, -6.f);
        return _mm512_permutexvar_ps(_mm512_srli_epi32(c, 4 * s), table);
    }
    static F scales(const std::uint8_t* p) {
        std::uint32_t four;
        std::memcpy(&four, p, sizeof four);
        // Byte b of the word goes to the exponent field of lanes 4b .. 4b+3.
        const __m512i shift = _mm512_setr_epi32(0, 0, 0, 0, 8, 8, 8, 8, 16, 16, 16, 16, 24, 24, 24, 24);
        const __m512i bytes = _mm512_srlv_epi32(_mm512_set1_epi32(int(four)), shift);
        __m512i bits = _mm512_and_si512(_mm512_slli_epi32(bytes, 23), _mm512_set1_epi32(0x7f800000));
        const __mmask16 nan = _mm512_cmpeq_epi32_mask(bits, _mm512_set1_epi32(0x7f800000));
        // Exponent 0 is 2^-127, which float32 writes as 0x00400000; 255 is NaN.
        bits = _mm512_max_epu32(bits, _mm512_set1_epi32(0x00400000));
        return _mm512_castsi512_ps(_mm512_mask_blend_epi32(nan, bits, _mm512_set1_epi32(0x7fc00000)));
    }
    // e4m3 shifted into a half is 2^-8 of its value, subnormals too, and vcvtph2ps takes those at full speed.
    static void e4m3(const std::uint8_t* p, F* out, Nan& nan) {
        const __m256i bytes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
        nan.largest = _mm256_max_epu8(nan.largest, _mm256_and_si256(bytes, _mm256_set1_epi8(0x7f)));
        const __m512i wide = _mm512_slli_epi16(_mm512_cvtepi8_epi16(bytes), 7);
        const __m512i words = _mm512_and_si512(wide, _mm512_set1_epi16(short(0xbf80)));
        out[0] = _mm512_cvtph_ps(_mm512_castsi512_si256(words));
        out[1] = _mm512_cvtph_ps(_mm512_extracti64x4_epi64(words, 1));
    }
    static bool seen(const Nan& nan) {
        return _mm256_movemask_epi8(_mm256_cmpeq_epi8(nan.largest, _mm256_set1_epi8(0x7f))) != 0;
    }
};

}  // namespace

namespace {

constexpr Kernels with(const char* name, const Bf16Products* bf16, const Int8Products* int8,
                       const Int16Products* int16 = nullptr) {
    return {name, pack<Avx512>, rows<Avx512>, to_bf16, round_fp8, swiglu, bf16, int8, int16};
}

}  // namespace

const Kernels kAvx512Kernels = with("avx512", nullptr, nullptr);
#ifdef FOURFOLD_AVX512VNNI
const Kernels kAvx512VnniKernels = with("avx512vnni", nullptr, &kAvx512Int8);
#endif
#ifdef FOURFOLD_AVX512BF16
const Kernels kAvx512Bf16Kernels = with("avx512bf16", &kAvx512Bf16Products, &kAvx512Int8);
#endif
#ifdef FOURFOLD_AMX
const Kernels kAmxKernels = with("amx", &kAmxProducts, &kAvx512Int8, &kAmxInt16);
#endif

}  // namespace fourfold
