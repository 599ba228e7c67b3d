// AVX-512 VNNI (2019 and later).
#include <immintrin.h>

#include "kernel_int8.h"

namespace fourfold {
namespace {

struct Vnni {
    static constexpr int lanes = 16, offset = 12, panel = 4, tile = 3;
    using I = __m512i;
    using F = __m512;
    using Sum = __m512i;

    static I load(const std::uint8_t* p) { return _mm512_loadu_si512(p); }
    static void store(std::uint8_t* p, I v) { _mm512_storeu_si512(p, v); }
    static void turn(I (&v)[4]) {
        const I a = _mm512_unpacklo_epi32(v[0], v[1]), b = _mm512_unpackhi_epi32(v[0], v[1]);
        const I c = _mm512_unpacklo_epi32(v[2], v[3]), d = _mm512_unpackhi_epi32(v[2], v[3]);
        v[0] = _mm512_unpacklo_epi64(a, c), v[1] = _mm512_unpackhi_epi64(a, c);
        v[2] = _mm512_unpacklo_epi64(b, d), v[3] = _mm512_unpackhi_epi64(b, d);
    }
    static I low(I codes) {
        const __m128i table = _mm_setr_epi8(12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0);
        return _mm512_shuffle_epi8(_mm512_broadcast_i32x4(table), _mm512_and_si512(codes, _mm512_set1_epi8(15)));
    }
    static I high(I codes) { return low(_mm512_srli_epi16(codes, 4)); }
    static Sum start(const std::uint8_t* p) { return load(p); }
    template <int v>
    static void add(Sum& sum, I weights, I x) {
        sum = _mm512_dpbusd_epi32(sum, weights, x);
    }
    static F value(Sum sum) { return _mm512_cvtepi32_ps(sum); }

    static F zero() { return _mm512_setzero_ps(); }
    static F load(const float* p) { return _mm512_loadu_ps(p); }
    static void store(float* p, F v) { _mm512_storeu_ps(p, v); }
    static F mul(F a, F b) { return _mm512_mul_ps(a, b); }
    static F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
    static float sum(F f) {
        const __m256 w = _mm256_add_ps(_mm512_castps512_ps256(f), _mm512_extractf32x8_ps(f, 1));
        __m128 v = _mm_add_ps(_mm256_castps256_ps128(w), _mm256_extractf128_ps(w, 1));
        v = _mm_add_ps(v, _mm_movehl_ps(v, v));
        return _mm_cvtss_f32(_mm_add_ss(v, _mm_movehdup_ps(v)));
    }
    static F scales(const std::uint8_t* p) {
        const __m128i by_lane = _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
        const __m128i codes = _mm_shuffle_epi8(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)), by_lane);
        const __m512i exponents = _mm512_slli_epi32(_mm512_cvtepu8_epi32(codes), 23);
        const __mmask16 nan = _mm512_cmpeq_epi32_mask(exponents, _mm512_set1_epi32(0x7f800000));
        // Exponent 0 is 2^-127, which float32 writes as 0x00400000; 255 is NaN.
        const __m512i bits = _mm512_max_epu32(exponents, _mm512_set1_epi32(0x00400000));
        return _mm512_castsi512_ps(_mm512_mask_blend_epi32(nan, bits, _mm512_set1_epi32(0x7fc00000)));
    }
};

}  // namespace

const Int8Products kAvx512Int8 = {packed_bytes<Vnni>, pack_int8<Vnni>, rows_int8<Vnni>};

}  // namespace fourfold
