// AVX-512 F, BW, VL and DQ (2017 and later).
#include <immintrin.h>

#include "vector_table.h"

namespace fourfold {
namespace {

struct Avx512 {
    static constexpr int lanes = 16, tile_rows = 4, value_vectors = 4;
    using F = __m512;

    static __mmask16 mask(index_t n) { return __mmask16((1u << n) - 1); }
    static F wide(__m256i half) {
        return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
    }
    static __m256i narrow(F v) {
        return _mm512_cvtepi32_epi16(_mm512_srli_epi32(_mm512_castps_si512(to_bf16_grid(v)), 16));
    }

    static F zero() { return _mm512_setzero_ps(); }
    static F broadcast(float a) { return _mm512_set1_ps(a); }
    static F load(const float* p) { return _mm512_loadu_ps(p); }
    static F load(const bf16* p) { return wide(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))); }
    static F load_some(const float* p, index_t n) { return _mm512_maskz_loadu_ps(mask(n), p); }
    static F load_some(const bf16* p, index_t n) { return wide(_mm256_maskz_loadu_epi16(mask(n), p)); }
    static void store(float* p, F v) { _mm512_storeu_ps(p, v); }
    static void store(bf16* p, F v) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), narrow(v)); }
    static void store_some(float* p, F v, index_t n) { _mm512_mask_storeu_ps(p, mask(n), v); }
    static void store_some(bf16* p, F v, index_t n) { _mm256_mask_storeu_epi16(p, mask(n), narrow(v)); }
    static F add(F a, F b) { return _mm512_add_ps(a, b); }
    static F sub(F a, F b) { return _mm512_sub_ps(a, b); }
    static F mul(F a, F b) { return _mm512_mul_ps(a, b); }
    static F div(F a, F b) { return _mm512_div_ps(a, b); }
    static F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
    static F sqrt(F a) { return _mm512_sqrt_ps(a); }
    static F min(F a, F b) { return _mm512_min_ps(a, b); }
    static F max(F a, F b) { return _mm512_max_ps(a, b); }
    static F round(F a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
    static F abs(F a) { return _mm512_abs_ps(a); }
    static F copy_sign(F size, F sign) { return _mm512_or_ps(size, _mm512_and_ps(sign, _mm512_set1_ps(-0.f))); }
    static F binade(F a) { return _mm512_and_ps(a, _mm512_castsi512_ps(_mm512_set1_epi32(0x7f800000))); }
    static F pow2(F a) {
        const __m512i exponent = _mm512_add_epi32(_mm512_cvtps_epi32(a), _mm512_set1_epi32(127));
        return _mm512_castsi512_ps(_mm512_slli_epi32(exponent, 23));
    }
    static F at_least(F a, F x, F limit) {
        return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x, limit, _CMP_NLT_UQ), a);
    }
    template <int k>
    static F exchange(F a) {
        const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
        return _mm512_permutexvar_ps(_mm512_xor_si512(lane, _mm512_set1_epi32(k)), a);
    }
    static F to_bf16_grid(F a) {
        const __m512i bits = _mm512_castps_si512(a);
        const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
        const __m512i up = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
        const __m512i near = _mm512_and_si512(up, _mm512_set1_epi32(int(0xffff0000)));
        const __mmask16 nan = _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q);
        return _mm512_castsi512_ps(_mm512_mask_mov_epi32(near, nan, _mm512_set1_epi32(0x7fc00000)));
    }
    static float first(F a) { return _mm512_cvtss_f32(a); }
    static float sum(F a) {
        const F v[lanes] = {a, a, a, a, a, a, a, a, a, a, a, a, a, a, a, a};
        return first(sums(v));
    }
    static float largest(F a) { return _mm512_reduce_max_ps(a); }
    // Pairs of vectors, then pairs of pairs, then their quarters.
    static F two(F a, F b) { return _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b)); }
    static F four(F a, F b, F c, F d) {
        const __m512d x = _mm512_castps_pd(two(a, b)), y = _mm512_castps_pd(two(c, d));
        return _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(x, y)),
                             _mm512_castpd_ps(_mm512_unpackhi_pd(x, y)));
    }
    // Quarters 0, 2 of a, then of b, plus quarters 1, 3 of both.
    static F quarters(F a, F b) {
        return _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd));
    }
    static F sums(const F (&v)[lanes]) {
        const F a = four(v[0], v[1], v[2], v[3]), b = four(v[4], v[5], v[6], v[7]);
        const F c = four(v[8], v[9], v[10], v[11]), d = four(v[12], v[13], v[14], v[15]);
        return quarters(quarters(a, b), quarters(c, d));
    }
};

}  // namespace

const VectorKernels kAvx512Vectors = vector_table<Avx512>();

}  // namespace fourfold
