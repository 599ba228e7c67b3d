// The fastest multiply-adds of a processor: independent chains in registers, no memory at all.
#include <chrono>
#include <cstdint>

#include "machine.h"

#ifdef FOURFOLD_X86
#include <cpuid.h>
#include <immintrin.h>
#ifdef __linux__
#include <sys/syscall.h>
#include <unistd.h>
#endif
#endif

namespace fourfold {
namespace {

constexpr int kChains = 12;  // enough to hide a latency of 4 to 6 cycles at two instructions a cycle
constexpr int kRounds = 10000;

// while (busy()) { one block of work } until the time is over; counts the operations of the blocks.
class Busy {
public:
    Busy(double seconds, double operations, double* done) : seconds_(seconds), operations_(operations), done_(done) {
        *done = 0;
    }
    bool operator()() {
        const auto now = Clock::now();
        if (blocks_++ == 0) begin_ = now;
        took = std::chrono::duration<double>(now - begin_).count();
        *done_ = operations_ * (blocks_ - 1);
        return took < seconds_;
    }
    double took = 0;

private:
    using Clock = std::chrono::steady_clock;
    double seconds_, operations_;
    double* done_;
    std::int64_t blocks_ = 0;
    Clock::time_point begin_;
};

volatile float g_result;  // somebody must want the results, or the compiler leaves the work out

// Chains start from different values: equal ones the compiler would compute once.

double run_generic(double seconds, double* done) {
    using Vector = float __attribute__((vector_size(16)));
    Vector chains[kChains];
    for (int k = 0; k < kChains; ++k) chains[k] = Vector{} + static_cast<float>(k);
    const Vector factor = Vector{} + 0.999f, term = Vector{} + 0.001f;
    Busy busy(seconds, 2.0 * 4 * kChains * kRounds, done);
    while (busy())
        for (int round = 0; round < kRounds; ++round)
            for (int k = 0; k < kChains; ++k) chains[k] = chains[k] * factor + term;
    for (int k = 1; k < kChains; ++k) chains[0] += chains[k];
    g_result = chains[0][0];
    return busy.took;
}

#ifdef FOURFOLD_X86

[[gnu::target("avx2,fma")]] double run_avx2(double seconds, double* done) {
    __m256 chains[kChains];
    for (int k = 0; k < kChains; ++k) chains[k] = _mm256_set1_ps(static_cast<float>(k));
    const __m256 factor = _mm256_set1_ps(0.999f), term = _mm256_set1_ps(0.001f);
    Busy busy(seconds, 2.0 * 8 * kChains * kRounds, done);
    while (busy())
        for (int round = 0; round < kRounds; ++round)
            for (int k = 0; k < kChains; ++k) chains[k] = _mm256_fmadd_ps(chains[k], factor, term);
    for (int k = 1; k < kChains; ++k) chains[0] = _mm256_add_ps(chains[0], chains[k]);
    g_result = _mm256_cvtss_f32(chains[0]);
    return busy.took;
}

[[gnu::target("avx512f")]] double run_avx512(double seconds, double* done) {
    __m512 chains[kChains];
    for (int k = 0; k < kChains; ++k) chains[k] = _mm512_set1_ps(static_cast<float>(k));
    const __m512 factor = _mm512_set1_ps(0.999f), term = _mm512_set1_ps(0.001f);
    Busy busy(seconds, 2.0 * 16 * kChains * kRounds, done);
    while (busy())
        for (int round = 0; round < kRounds; ++round)
            for (int k = 0; k < kChains; ++k) chains[k] = _mm512_fmadd_ps(chains[k], factor, term);
    for (int k = 1; k < kChains; ++k) chains[0] = _mm512_add_ps(chains[0], chains[k]);
    g_result = _mm512_cvtss_f32(chains[0]);
    return busy.took;
}

[[gnu::target("avx512f,avx512bf16")]] double run_avx512_bf16(double seconds, double* done) {
    __m512 chains[kChains];
    for (int k = 0; k < kChains; ++k) chains[k] = _mm512_set1_ps(static_cast<float>(k));
    const auto factor = (__m512bh)_mm512_set1_epi32(0x3c003c00);
    Busy busy(seconds, 2.0 * 32 * kChains * kRounds, done);
    while (busy())
        for (int round = 0; round < kRounds; ++round)
            for (int k = 0; k < kChains; ++k) chains[k] = _mm512_dpbf16_ps(chains[k], factor, factor);
    for (int k = 1; k < kChains; ++k) chains[0] = _mm512_add_ps(chains[0], chains[k]);
    g_result = _mm512_cvtss_f32(chains[0]);
    return busy.took;
}

[[gnu::target("avx512f,avx512vnni")]] double run_avx512_int8(double seconds, double* done) {
    __m512i chains[kChains];
    for (int k = 0; k < kChains; ++k) chains[k] = _mm512_set1_epi32(k);
    const __m512i factor = _mm512_set1_epi8(1);
    Busy busy(seconds, 2.0 * 64 * kChains * kRounds, done);
    while (busy())
        for (int round = 0; round < kRounds; ++round)
            for (int k = 0; k < kChains; ++k) chains[k] = _mm512_dpbusd_epi32(chains[k], factor, factor);
    for (int k = 1; k < kChains; ++k) chains[0] = _mm512_add_epi32(chains[0], chains[k]);
    g_result = static_cast<float>(_mm_cvtsi128_si32(_mm512_castsi512_si128(chains[0])));
    return busy.took;
}

#ifdef __linux__
// Tiles of 16 rows of 64 bytes.  Linux lets a process use them after it has asked.
struct alignas(64) TileShapes {
    std::uint8_t palette = 1, start_row = 0, reserved[14] = {};
    std::uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    std::uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

bool may_use_tiles() {
    constexpr int kRequest = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILE_DATA
    return syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
}

[[gnu::target("amx-tile,amx-bf16")]] double run_amx_bf16(double seconds, double* done) {
    const TileShapes shapes;
    _tile_loadconfig(&shapes);
    _tile_zero(6);
    _tile_zero(7);
    Busy busy(seconds, 2.0 * 16 * 16 * 32 * 6 * (kRounds / 10), done);
    while (busy())
        for (int round = 0; round < kRounds / 10; ++round) {
            _tile_dpbf16ps(0, 6, 7);
            _tile_dpbf16ps(1, 6, 7);
            _tile_dpbf16ps(2, 6, 7);
            _tile_dpbf16ps(3, 6, 7);
            _tile_dpbf16ps(4, 6, 7);
            _tile_dpbf16ps(5, 6, 7);
        }
    _tile_release();
    return busy.took;
}

[[gnu::target("amx-tile,amx-int8")]] double run_amx_int8(double seconds, double* done) {
    const TileShapes shapes;
    _tile_loadconfig(&shapes);
    _tile_zero(6);
    _tile_zero(7);
    Busy busy(seconds, 2.0 * 16 * 16 * 64 * 6 * (kRounds / 10), done);
    while (busy())
        for (int round = 0; round < kRounds / 10; ++round) {
            _tile_dpbusd(0, 6, 7);
            _tile_dpbusd(1, 6, 7);
            _tile_dpbusd(2, 6, 7);
            _tile_dpbusd(3, 6, 7);
            _tile_dpbusd(4, 6, 7);
            _tile_dpbusd(5, 6, 7);
        }
    _tile_release();
    return busy.took;
}
#endif

void add_x86(std::vector<Multiplier>& found) {
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) found.push_back({"f32", "avx2", run_avx2});
    if (!__builtin_cpu_supports("avx512f")) return;
    found.push_back({"f32", "avx512", run_avx512});
    if (__builtin_cpu_supports("avx512bf16")) found.push_back({"bf16", "avx512", run_avx512_bf16});
    if (__builtin_cpu_supports("avx512vnni")) found.push_back({"int8", "avx512", run_avx512_int8});
#ifdef __linux__
    unsigned a = 0, b = 0, c = 0, d = 0;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(d & (1u << 24)) || !may_use_tiles()) return;
    if (d & (1u << 22)) found.push_back({"bf16", "amx", run_amx_bf16});
    if (d & (1u << 25)) found.push_back({"int8", "amx", run_amx_int8});
#endif
}
#endif

std::vector<Multiplier> detect() {
    std::vector<Multiplier> found{{"f32", "generic", run_generic}};
#ifdef FOURFOLD_X86
    add_x86(found);
#endif
    return found;
}

}  // namespace

const std::vector<Multiplier>& multipliers() {
    static const std::vector<Multiplier> all = detect();
    return all;
}

}  // namespace fourfold
