#include "machine.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>
#include <thread>

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace fourfold {
namespace {

constexpr std::size_t kPage = std::size_t{1} << 21;  // a huge page, where the system has them
constexpr std::size_t kLine = 64;
constexpr int kMostStreams = 16;

double now() {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// body(0) .. body(threads - 1) at the same time; seconds from the common start to the end of the last.
template <class Body>
double together(int threads, const Body& body) {
    std::atomic<int> waiting{threads};
    std::vector<double> begin(threads), end(threads);
    auto work = [&](int i) {
        --waiting;
        while (waiting.load()) std::this_thread::yield();
        begin[i] = now();
        body(i);
        end[i] = now();
    };
    std::vector<std::thread> others;
    for (int i = 1; i < threads; ++i) others.emplace_back(work, i);
    work(0);
    for (std::thread& other : others) other.join();
    return *std::max_element(end.begin(), end.end()) - *std::min_element(begin.begin(), begin.end());
}

// Vectors of the compiler's own: they become the widest loads of the function that this is inlined into.
using Word = std::uint64_t __attribute__((vector_size(kLine), may_alias));

template <int Streams>
[[gnu::always_inline]] inline std::uint64_t sum_streams(const char* from, std::size_t lines) {
    const std::size_t each = lines / Streams;
    Word sums[Streams] = {};
    for (std::size_t i = 0; i < each; ++i)
        for (int s = 0; s < Streams; ++s)
            sums[s] += *reinterpret_cast<const Word*>(from + (s * each + i) * kLine);
    std::uint64_t total = 0;
    for (int s = 0; s < Streams; ++s)
        for (std::size_t lane = 0; lane < kLine / 8; ++lane) total += sums[s][lane];
    return total;
}

[[gnu::always_inline]] inline std::uint64_t sum_lines(const char* from, std::size_t lines, int streams) {
    if (streams >= 16) return sum_streams<16>(from, lines);
    if (streams >= 8) return sum_streams<8>(from, lines);
    if (streams >= 4) return sum_streams<4>(from, lines);
    if (streams >= 2) return sum_streams<2>(from, lines);
    return sum_streams<1>(from, lines);
}

std::uint64_t sum_generic(const char* from, std::size_t lines, int streams) {
    return sum_lines(from, lines, streams);
}

#ifdef FOURFOLD_X86
[[gnu::target("avx2")]] std::uint64_t sum_avx2(const char* from, std::size_t lines, int streams) {
    return sum_lines(from, lines, streams);
}

[[gnu::target("avx512f")]] std::uint64_t sum_avx512(const char* from, std::size_t lines, int streams) {
    return sum_lines(from, lines, streams);
}
#endif

using Sum = std::uint64_t (*)(const char* from, std::size_t lines, int streams);

Sum widest_sum() {
#ifdef FOURFOLD_X86
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f")) return sum_avx512;
    if (__builtin_cpu_supports("avx2")) return sum_avx2;
#endif
    return sum_generic;
}

}  // namespace

ReadProbe::ReadProbe(std::size_t bytes, int threads) : bytes_((bytes + kPage - 1) / kPage * kPage) {
    threads = std::max(threads, 1);
    memory_ = static_cast<char*>(std::aligned_alloc(kPage, bytes_));
    if (!memory_) throw std::bad_alloc();
#ifdef __linux__
    madvise(memory_, bytes_, MADV_HUGEPAGE);
#endif
    together(threads, [&](int i) {
        const std::size_t begin = bytes_ / kLine * i / threads * kLine;
        const std::size_t end = bytes_ / kLine * (i + 1) / threads * kLine;
        std::memset(memory_ + begin, 1, end - begin);
    });
}

ReadProbe::~ReadProbe() { std::free(memory_); }

double ReadProbe::seconds(int threads, int streams) const {
    static const Sum sum = widest_sum();
    static std::atomic<std::uint64_t> seen{0};  // keeps the compiler from leaving the reading out
    threads = std::max(threads, 1);
    streams = std::clamp(streams, 1, kMostStreams);
    const std::size_t lines = bytes_ / kLine;
    return together(threads, [&](int i) {
        const std::size_t begin = lines * i / threads, end = lines * (i + 1) / threads;
        seen += sum(memory_ + begin * kLine, end - begin, streams);
    });
}

double peak(const Multiplier& multiplier, int threads, double seconds) {
    threads = std::max(threads, 1);
    std::vector<double> operations(threads), took(threads);
    together(threads, [&](int i) { took[i] = multiplier.run(seconds, &operations[i]); });
    double rate = 0;
    for (int i = 0; i < threads; ++i) rate += operations[i] / took[i];
    return rate;
}

}  // namespace fourfold
