// Operations on one row at a time: norm, rotation, activation, Hadamard, pooling, rounding to FP8 and FP4.
#pragma once

#include "vector_math.h"

namespace fourfold {
namespace {

// f(const float*) or f(const bf16*), whichever the type says.
template <class Call>
FOURFOLD_INLINE void with_type(Type type, const void* p, Call&& call) {
    if (type == Type::F32)
        call(static_cast<const float*>(p));
    else
        call(static_cast<const bf16*>(p));
}

template <class S>
void widen(const void* x, Type type, index_t n, bool rounded, float* y) {
    with_type(type, x, [&](auto* from) {
        for (index_t i = 0; i < n; i += S::lanes) {
            const typename S::F v = load<S>(from + i, n - i);
            store<S>(y + i, rounded ? S::to_bf16_grid(v) : v, n - i);
        }
    });
}

template <class S>
void narrow(const float* x, index_t n, bf16* y) {
    for (index_t i = 0; i < n; i += S::lanes) store<S>(y + i, load<S>(x + i, n - i), n - i);
}

template <class S>
float mean_square(const void* x, Type type, index_t n) {
    float sum = 0.f;
    with_type(type, x, [&](auto* from) { sum = sum_of_squares<S>(from, n); });
    return sum / float(n);
}

template <class S, class T, class W>
void rms_norm_row(const T* x, index_t width, const W* weight, float eps, T* y) {
    const typename S::F factor =
        S::broadcast(1.f / std::sqrt(sum_of_squares<S>(x, width) / float(width) + eps));
    for (index_t i = 0; i < width; i += S::lanes) {
        typename S::F v = S::mul(load<S>(x + i, width - i), factor);
        if (weight) v = S::mul(v, load<S>(weight + i, width - i));
        store<S>(y + i, v, width - i);
    }
}

template <class S>
void rms_norm(Rows x, index_t n, index_t width, const void* weight, Type weight_type, float eps, void* y) {
    with_type(x.type, x.data, [&](auto* from) {
        auto* to = static_cast<std::remove_const_t<std::remove_pointer_t<decltype(from)>>*>(y);
        with_type(weight_type, weight, [&](auto* w) {
            for (index_t i = 0; i < n; ++i)
                rms_norm_row<S>(from + i * x.stride, width, w, eps, to + i * width);
        });
    });
}

// Pairs (e, o) become (e cos - o sin, o cos + e sin): each vector times cos, plus its neighbours times -+sin.
template <class S>
void rope(Rows x, index_t tokens, index_t heads, index_t width, const float* cos, const float* sin, index_t pairs,
          bool inverse, float* scratch, void* y) {
    const index_t turned = 2 * pairs, still = width - turned;
    float *c = scratch, *s = scratch + turned;
    with_type(x.type, x.data, [&](auto* from) {
        using T = std::remove_const_t<std::remove_pointer_t<decltype(from)>>;
        T* to = static_cast<T*>(y);
        for (index_t t = 0; t < tokens; ++t, cos += pairs, sin += pairs) {
            for (index_t i = 0; i < pairs; ++i) {
                c[2 * i] = c[2 * i + 1] = cos[i];
                s[2 * i] = inverse ? sin[i] : -sin[i];
                s[2 * i + 1] = inverse ? -sin[i] : sin[i];
            }
            for (index_t h = 0; h < heads; ++h, from += x.stride, to += width) {
                if (from != to) std::memcpy(to, from, still * sizeof(T));
                for (index_t i = 0; i < turned; i += S::lanes) {
                    const index_t left = turned - i;
                    const typename S::F v = load<S>(from + still + i, left);
                    const typename S::F w = S::mul(S::template exchange<1>(v), load<S>(s + i, left));
                    store<S>(to + still + i, S::fma(v, load<S>(c + i, left), w), left);
                }
            }
        }
    });
}

// Butterflies among the lanes of one vector: lane i becomes its pair's sum or difference.
template <class S, int k>
FOURFOLD_INLINE typename S::F butterflies(typename S::F v, index_t width) {
    if constexpr (k < S::lanes) {
        if (k >= width) return v;
        float sign[S::lanes];
        for (int i = 0; i < S::lanes; ++i) sign[i] = i & k ? -1.f : 1.f;
        v = S::fma(v, S::load(sign), S::template exchange<k>(v));
        return butterflies<S, 2 * k>(v, width);
    } else {
        return v;
    }
}

template <class S>
void hadamard(Rows x, index_t n, index_t width, float* scratch, void* y) {
    const typename S::F unit = S::broadcast(float(1. / std::sqrt(double(width))));
    with_type(x.type, x.data, [&](auto* from) {
        using T = std::remove_const_t<std::remove_pointer_t<decltype(from)>>;
        T* to = static_cast<T*>(y);
        for (index_t r = 0; r < n; ++r, from += x.stride, to += width) {
            for (index_t i = 0; i < width; i += S::lanes)
                store<S>(scratch + i, butterflies<S, 1>(load<S>(from + i, width - i), width), width - i);
            for (index_t half = S::lanes; half < width; half *= 2) {
                for (index_t i = 0; i < width; i += S::lanes) {
                    if (i & half) continue;
                    const typename S::F a = S::load(scratch + i), b = S::load(scratch + i + half);
                    S::store(scratch + i, S::add(a, b));
                    S::store(scratch + i + half, S::sub(a, b));
                }
            }
            for (index_t i = 0; i < width; i += S::lanes)
                store<S>(to + i, S::mul(load<S>(scratch + i, width - i), unit), width - i);
        }
    });
}

// Softmax over the m rows of a block, channel by channel.
template <class S>
void pool(Rows values, Rows scores, index_t blocks, index_t m, index_t width, float* y) {
    auto *v = static_cast<const float*>(values.data), *s = static_cast<const float*>(scores.data);
    for (index_t b = 0; b < blocks; ++b, v += m * values.stride, s += m * scores.stride, y += width) {
        for (index_t i = 0; i < width; i += S::lanes) {
            const index_t left = width - i;
            typename S::F most = S::broadcast(-INFINITY), total = S::zero(), sum = S::zero();
            for (index_t j = 0; j < m; ++j) most = S::max(most, load<S>(s + j * scores.stride + i, left));
            for (index_t j = 0; j < m; ++j) {
                const typename S::F p =
                    exponential<S>(S::sub(load<S>(s + j * scores.stride + i, left), most));
                total = S::add(total, p);
                sum = S::fma(p, load<S>(v + j * values.stride + i, left), sum);
            }
            store<S>(y + i, S::div(sum, total), left);
        }
    }
}

// 2^ceil(log2(amax / limit)), exactly; 1 where amax is not finite, as frexp has it.
inline float power_of_two_scale(float amax, float limit) {
    const float ratio = amax / limit;
    if (!std::isfinite(ratio)) return 1.f;
    std::uint32_t bits;
    std::memcpy(&bits, &ratio, sizeof bits);
    bits = (bits + 0x7fffffu) & 0x7f800000u;
    float scale;
    std::memcpy(&scale, &bits, sizeof scale);
    return scale;
}

struct Fp8Grid {
    static constexpr float limit = 448.f, floor = 1e-4f, smallest_binade = 0x1p-6f, step = 0x1p-3f;
};
struct Fp4Grid {
    static constexpr float limit = 6.f, floor = 0x6p-126f, smallest_binade = 1.f, step = 0x1p-1f;
};

// |v| to the nearest value of the grid, ties to even: adding 1.5 * 2^23 steps leaves no bits below a step.
template <class S, class Grid>
FOURFOLD_INLINE typename S::F to_grid(typename S::F v) {
    using F = typename S::F;
    const F binade = S::max(S::binade(v), S::broadcast(Grid::smallest_binade));
    const F shift = S::mul(binade, S::broadcast(Grid::step * 0x1.8p23f));
    return S::sub(S::add(S::abs(v), shift), shift);
}

// A group with an infinity or a NaN has scale 1: what lies beyond the grid becomes its largest value.
template <class S, class Grid, class T>
void round_odd_group(const T* x, index_t n, T* y) {
    for (index_t i = 0; i < n; ++i) {
        const float v = S::first(S::load_some(x + i, 1));
        const float bounded = std::fabs(v) > Grid::limit ? Grid::limit : std::fabs(v);
        const float size = S::first(to_grid<S, Grid>(S::broadcast(bounded)));
        S::store_some(y + i, S::broadcast(std::isnan(v) ? v : std::copysign(size, v)), 1);
    }
}

template <class S, class Grid, class T>
void round_group(const T* x, index_t n, T* y) {
    using F = typename S::F;
    F most = S::zero(), odd = S::zero();
    for (index_t i = 0; i < n; i += S::lanes) {
        const F v = load<S>(x + i, n - i);
        most = S::max(most, S::abs(v));
        odd = S::fma(v, S::zero(), odd);
    }
    if (S::sum(odd) != 0.f) return round_odd_group<S, Grid>(x, n, y);
    const float amax = S::largest(most);
    const float scale = power_of_two_scale(amax < Grid::floor ? Grid::floor : amax, Grid::limit);
    const F up = S::broadcast(scale), down = S::broadcast(1.f / scale);
    for (index_t i = 0; i < n; i += S::lanes) {
        const F v = load<S>(x + i, n - i);
        const F size = to_grid<S, Grid>(S::mul(v, down));
        store<S>(y + i, S::mul(S::copy_sign(size, v), up), n - i);
    }
}

template <class S, class Grid>
void round_rows(Rows x, index_t n, index_t width, index_t group, void* y) {
    with_type(x.type, x.data, [&](auto* from) {
        auto* to = static_cast<std::remove_const_t<std::remove_pointer_t<decltype(from)>>*>(y);
        for (index_t r = 0; r < n; ++r, from += x.stride, to += width)
            for (index_t i = 0; i < width; i += group)
                round_group<S, Grid>(from + i, group < width - i ? group : width - i, to + i);
    });
}

constexpr index_t kFp8RowGroup = 64, kFp4RowGroup = 32;

inline float float_of(std::uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

inline std::uint32_t bits_of(float value) {
    std::uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}

inline float row_scale(std::uint8_t exponent) {
    return exponent == 255 ? NAN : float_of(std::uint32_t(exponent) << 23);
}

// The value of a code without its sign: `mantissa` bits, the smallest exponent of normal numbers being that of the
// float with these bits of exponent.  Those below it are such numbers less the one that they begin with: no branch,
// and no denormal float, which a processor may be told to flush.
template <int mantissa, std::uint32_t smallest>
FOURFOLD_INLINE float value_of(std::uint32_t size) {
    const std::uint32_t small = std::uint32_t(std::int32_t(size - (1u << mantissa)) >> 31);
    const std::uint32_t bits = (size << (23 - mantissa)) + ((smallest - 1) << 23) + (small & (1u << 23));
    return float_of(bits) - float_of(small & (smallest << 23));
}

// The values are bf16 numbers: of their floats only the upper halves have bits.  Plain loops: compilers make
// vectors of them.
template <int count>
FOURFOLD_INLINE void decode_fp8(const std::uint8_t* codes, index_t n, float scale, bf16* y) {
    for (index_t i = 0; i < (count ? count : n); ++i)
        y[i] = {std::uint16_t((bits_of(value_of<3, 121>(codes[i] & 0x7fu) * scale) | (codes[i] & 0x80u) << 24) >> 16)};
}

template <int count>
FOURFOLD_INLINE void decode_fp4(const std::uint8_t* codes, index_t n, float scale, bf16* y) {
    for (index_t i = 0; i < (count ? count : n) / 2; ++i) {
        const std::uint32_t low = codes[i] & 15u, high = codes[i] >> 4;
        const std::uint32_t first = bits_of(value_of<1, 127>(low & 7u) * scale) | (low & 8u) << 28;
        const std::uint32_t second = bits_of(value_of<1, 127>(high & 7u) * scale) | (high & 8u) << 28;
        const std::uint32_t both = first >> 16 | (second & 0xffff0000u);
        std::memcpy(y + 2 * i, &both, sizeof both);
    }
}

inline void decode_row(const std::uint8_t* packed, index_t body, int bits, bf16* y) {
    const index_t group = bits == 8 ? kFp8RowGroup : kFp4RowGroup;
    const std::uint8_t* scales = packed + body * bits / 8;
    for (index_t i = 0; i < body; i += group) {
        const index_t n = group < body - i ? group : body - i;
        const float scale = row_scale(*scales++);
        if (bits == 8)
            n == kFp8RowGroup ? decode_fp8<kFp8RowGroup>(packed + i, n, scale, y + i)
                              : decode_fp8<0>(packed + i, n, scale, y + i);
        else
            n == kFp4RowGroup ? decode_fp4<kFp4RowGroup>(packed + i / 2, n, scale, y + i)
                              : decode_fp4<0>(packed + i / 2, n, scale, y + i);
    }
}

}  // namespace
}  // namespace fourfold
