// AVX2: pairs of products in 16 bits.
#include <immintrin.h>

#include "kernel_int8.h"

namespace fourfold {
namespace {

struct Avx2 {
    static constexpr int lanes = 8, offset = 12, panel = 2, tile = 2;
    using I = __m256i;
    using F = __m256;
    // Four vectors' pairs stay within 16 bits: 4 * 2 * 24 * 127.
    struct Sum {
        I all, pairs;
    };

    static I load(const std::uint8_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
    static void store(std::uint8_t* p, I v) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), v); }
    static void turn(I (&v)[4]) {
        const I a = _mm256_unpacklo_epi32(v[0], v[1]), b = _mm256_unpackhi_epi32(v[0], v[1]);
        const I c = _mm256_unpacklo_epi32(v[2], v[3]), d = _mm256_unpackhi_epi32(v[2], v[3]);
        v[0] = _mm256_unpacklo_epi64(a, c), v[1] = _mm256_unpackhi_epi64(a, c);
        v[2] = _mm256_unpacklo_epi64(b, d), v[3] = _mm256_unpackhi_epi64(b, d);
    }
    static I low(I codes) {
        const __m128i table = _mm_setr_epi8(12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0);
        return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(table), _mm256_and_si256(codes, _mm256_set1_epi8(15)));
    }
    static I high(I codes) { return low(_mm256_srli_epi16(codes, 4)); }
    static Sum start(const std::uint8_t* p) { return {load(p), _mm256_setzero_si256()}; }
    template <int v>
    static void add(Sum& sum, I weights, I x) {
        const I pairs = _mm256_maddubs_epi16(weights, x);
        sum.pairs = v % 4 ? _mm256_add_epi16(sum.pairs, pairs) : pairs;
        if (v % 4 == 3) sum.all = _mm256_add_epi32(sum.all, _mm256_madd_epi16(sum.pairs, _mm256_set1_epi16(1)));
    }
    static F value(const Sum& sum) { return _mm256_cvtepi32_ps(sum.all); }

    static F zero() { return _mm256_setzero_ps(); }
    static F load(const float* p) { return _mm256_loadu_ps(p); }
    static void store(float* p, F v) { _mm256_storeu_ps(p, v); }
    static F mul(F a, F b) { return _mm256_mul_ps(a, b); }
    static F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
    static float sum(F f) {
        __m128 v = _mm_add_ps(_mm256_castps256_ps128(f), _mm256_extractf128_ps(f, 1));
        v = _mm_add_ps(v, _mm_movehl_ps(v, v));
        return _mm_cvtss_f32(_mm_add_ss(v, _mm_movehdup_ps(v)));
    }
    static F scales(const std::uint8_t* p) {
        const __m128i by_lane = _mm_setr_epi8(0, 2, 4, 6, 1, 3, 5, 7, -1, -1, -1, -1, -1, -1, -1, -1);
        const __m128i codes = _mm_shuffle_epi8(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)), by_lane);
        const __m256i largest = _mm256_set1_epi32(0x7f800000);
        const __m256i exponents = _mm256_slli_epi32(_mm256_cvtepu8_epi32(codes), 23);
        // Exponent 0 is 2^-127, which float32 writes as 0x00400000; 255 is NaN.
        const __m256i bits = _mm256_max_epu32(exponents, _mm256_set1_epi32(0x00400000));
        const __m256i nan = _mm256_srli_epi32(_mm256_cmpeq_epi32(exponents, largest), 1);
        return _mm256_castsi256_ps(_mm256_or_si256(bits, nan));
    }
};

}  // namespace

const Int8Products kAvx2Int8 = {packed_bytes<Avx2>, pack_int8<Avx2>, rows_int8<Avx2>};

}  // namespace fourfold
