// AVX2 with FMA (2013 and later).
#include <immintrin.h>

#include "vector_table.h"

namespace fourfold {
namespace {

struct Avx2 {
    // Sixteen registers: eight chains of dot products, or twelve of values.
    static constexpr int lanes = 8, tile_rows = 2, value_vectors = 3;
    using F = __m256;

    static F zero() { return _mm256_setzero_ps(); }
    static F broadcast(float a) { return _mm256_set1_ps(a); }
    static F load(const float* p) { return _mm256_loadu_ps(p); }
    static F load(const bf16* p) {
        const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
        return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
    }
    static void store(float* p, F v) { _mm256_storeu_ps(p, v); }
    static void store(bf16* p, F v) {
        const __m256i high = _mm256_srli_epi32(_mm256_castps_si256(to_bf16_grid(v)), 16);
        const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(high, high), 0x08);
        _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_castsi256_si128(packed));
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
    static F add(F a, F b) { return _mm256_add_ps(a, b); }
    static F sub(F a, F b) { return _mm256_sub_ps(a, b); }
    static F mul(F a, F b) { return _mm256_mul_ps(a, b); }
    static F div(F a, F b) { return _mm256_div_ps(a, b); }
    static F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
    static F sqrt(F a) { return _mm256_sqrt_ps(a); }
    static F min(F a, F b) { return _mm256_min_ps(a, b); }
    static F max(F a, F b) { return _mm256_max_ps(a, b); }
    static F round(F a) { return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
    static F abs(F a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.f), a); }
    static F copy_sign(F size, F sign) { return _mm256_or_ps(size, _mm256_and_ps(sign, _mm256_set1_ps(-0.f))); }
    static F binade(F a) { return _mm256_and_ps(a, _mm256_castsi256_ps(_mm256_set1_epi32(0x7f800000))); }
    static F pow2(F a) {
        const __m256i exponent = _mm256_add_epi32(_mm256_cvtps_epi32(a), _mm256_set1_epi32(127));
        return _mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23));
    }
    static F at_least(F a, F x, F limit) { return _mm256_andnot_ps(_mm256_cmp_ps(x, limit, _CMP_LT_OQ), a); }
    template <int k>
    static F exchange(F a) {
        return _mm256_permutevar8x32_ps(a, _mm256_setr_epi32(k, 1 ^ k, 2 ^ k, 3 ^ k, 4 ^ k, 5 ^ k, 6 ^ k, 7 ^ k));
    }
    static F to_bf16_grid(F a) {
        const __m256i bits = _mm256_castps_si256(a);
        const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
        const __m256i up = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
        const __m256 near = _mm256_castsi256_ps(_mm256_and_si256(up, _mm256_set1_epi32(int(0xffff0000))));
        const __m256 nan = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fc00000));
        return _mm256_blendv_ps(near, nan, _mm256_cmp_ps(a, a, _CMP_UNORD_Q));
    }
    static float first(F a) { return _mm256_cvtss_f32(a); }
    static float sum(F a) {
        const F v[lanes] = {a, a, a, a, a, a, a, a};
        return first(sums(v));
    }
    static float largest(F a) {
        __m128 v = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
        v = _mm_max_ps(v, _mm_movehl_ps(v, v));
        return _mm_cvtss_f32(_mm_max_ss(v, _mm_movehdup_ps(v)));
    }
    // Pairs of vectors, then pairs of pairs, then the halves.
    static F two(F a, F b) { return _mm256_add_ps(_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b)); }
    static F four(F a, F b) {
        const __m256d x = _mm256_castps_pd(a), y = _mm256_castps_pd(b);
        return _mm256_add_ps(_mm256_castpd_ps(_mm256_unpacklo_pd(x, y)),
                             _mm256_castpd_ps(_mm256_unpackhi_pd(x, y)));
    }
    static F sums(const F (&v)[lanes]) {
        const F low = four(two(v[0], v[1]), two(v[2], v[3])), high = four(two(v[4], v[5]), two(v[6], v[7]));
        return _mm256_add_ps(_mm256_permute2f128_ps(low, high, 0x20), _mm256_permute2f128_ps(low, high, 0x31));
    }
};

}  // namespace

const VectorKernels kAvx2Vectors = vector_table<Avx2>();

}  // namespace fourfold
