// AVX2 with FMA and F16C (2013 and later).
#include <immintrin.h>

#include "kernel.h"

namespace fourfold {
namespace {

struct Avx2 {
    static constexpr int lanes = 8;
    // Sixteen registers: two accumulators for each pair of rows, a weight and a few constants.
    template <int M>
    static constexpr int height = M == 1 ? 4 : M == 2 ? 2 : 1;
    static constexpr float e4m3_unit = 256.f;

    using F = __m256;
    using Codes = __m256i;
    struct Nan {
        __m256i largest = _mm256_setzero_si256();
    };

    static F zero() { return _mm256_setzero_ps(); }
    static F load(const float* p) { return _mm256_loadu_ps(p); }
    static F bf16(const bf16_t* p) {
        const __m256i words = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
        return _mm256_castsi256_ps(_mm256_slli_epi32(words, 16));
    }
    static F broadcast(float a) { return _mm256_set1_ps(a); }
    static F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
    static float sum(F f) {
        __m128 v = _mm_add_ps(_mm256_castps256_ps128(f), _mm256_extractf128_ps(f, 1));
        v = _mm_add_ps(v, _mm_movehl_ps(v, v));
        return _mm_cvtss_f32(_mm_add_ss(v, _mm_movehdup_ps(v)));
    }
    static Codes codes(const std::uint8_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
    // vpermps looks at the low three bits, the magnitude; the fourth is moved to where a float has its sign.
    template <int s>
    static F e2m1(Codes c) {
        const __m256 table = _mm256_setr_ps(0.f, 0.5f, 1.f, 1.5f, 2.f, 3.f, 4.f, 6.f);
        const __m256 magnitude = _mm256_permutevar8x32_ps(table, _mm256_srli_epi32(c, 4 * s));
        const __m256 sign = _mm256_castsi256_ps(_mm256_slli_epi32(c, 28 - 4 * s));
        return _mm256_or_ps(magnitude, _mm256_and_ps(sign, _mm256_set1_ps(-0.f)));
    }
    static F scales(const std::uint8_t* p) {
        return _mm256_set_m128(_mm_set1_ps(e8m0(p[1])), _mm_set1_ps(e8m0(p[0])));
    }
    // e4m3 shifted into a half is 2^-8 of its value, subnormals too, and vcvtph2ps takes those at full speed.
    static void e4m3(const std::uint8_t* p, F* out, Nan& nan) {
        const __m256i all = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
        nan.largest = _mm256_max_epu8(nan.largest, _mm256_and_si256(all, _mm256_set1_epi8(0x7f)));
        for (int half = 0; half < 2; ++half) {
            const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 16 * half));
            const __m256i wide = _mm256_slli_epi16(_mm256_cvtepi8_epi16(bytes), 7);
            const __m256i words = _mm256_and_si256(wide, _mm256_set1_epi16(short(0xbf80)));
            out[2 * half] = _mm256_cvtph_ps(_mm256_castsi256_si128(words));
            out[2 * half + 1] = _mm256_cvtph_ps(_mm256_extracti128_si256(words, 1));
        }
    }
    static bool seen(const Nan& nan) {
        return _mm256_movemask_epi8(_mm256_cmpeq_epi8(nan.largest, _mm256_set1_epi8(0x7f))) != 0;
    }
};

}  // namespace

const Kernels kAvx2Kernels = {"avx2", pack<Avx2>, rows<Avx2>, to_bf16, round_fp8, swiglu, nullptr, &kAvx2Int8, nullptr};

}  // namespace fourfold
