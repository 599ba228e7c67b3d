#include "thread_pool.h"

#include <chrono>
#include <thread>
#include <utility>

#ifdef __linux__
#include <sched.h>
#endif
#if defined(__x86_64__) || defined(_M_X64)
#include <immintrin.h>
#endif

namespace fourfold {
namespace {

void pause_briefly() {
#if defined(__x86_64__) || defined(_M_X64)
    _mm_pause();
#elif defined(__aarch64__)
    __asm__ __volatile__("yield");
#endif
}

// Refused (a processor was taken from us in the meantime): the thread runs wherever the system puts it.
void stay_on([[maybe_unused]] const std::vector<int>& processors) {
#ifdef __linux__
    cpu_set_t set;
    CPU_ZERO(&set);
    for (const int cpu : processors)
        if (cpu >= 0 && cpu < CPU_SETSIZE) CPU_SET(cpu, &set);
    sched_setaffinity(0, sizeof set, &set);
#endif
}

// A helper looks for the next job this long before it sleeps: most follow within microseconds.
constexpr auto kPatience = std::chrono::microseconds(200);

}  // namespace

ThreadPool& ThreadPool::instance() {
    // Never destroyed: helpers may sleep in it while the process exits.
    static ThreadPool* pool = new ThreadPool;
    return *pool;
}

void ThreadPool::set_threads(int threads) { threads_ = threads < 1 ? 1 : threads; }

void ThreadPool::place_helpers(std::vector<std::vector<int>> processors) { processors_ = std::move(processors); }

void ThreadPool::start_helpers() {
    while (helpers_ < threads_ - 1) {
        const int number = ++helpers_;
        const auto own = processors_.empty() ? std::vector<int>{} : processors_[number % processors_.size()];
        std::thread([this, number, own] {
            if (!own.empty()) stay_on(own);
            help(number);
        }).detach();
    }
}

void ThreadPool::work() {
    std::int64_t left = left_.load(std::memory_order_acquire);
    while (left > 0) {
        if (!left_.compare_exchange_weak(left, left - 1, std::memory_order_acq_rel)) continue;
        function_(context_, left - 1);
        unfinished_.fetch_sub(1, std::memory_order_acq_rel);
        left = left_.load(std::memory_order_acquire);
    }
}

void ThreadPool::help(int number) {
    std::uint32_t seen = 0;
    for (;;) {
        const auto give_up = std::chrono::steady_clock::now() + kPatience;
        while (jobs_.load(std::memory_order_acquire) == seen && std::chrono::steady_clock::now() < give_up)
            for (int i = 0; i < 16; ++i) pause_briefly();
        jobs_.wait(seen, std::memory_order_acquire);
        seen = jobs_.load(std::memory_order_acquire);
        if (number < threads_) work();  // set_threads may have lowered the number
    }
}

void ThreadPool::run(std::int64_t count, Function function, void* context) {
    std::unique_lock<std::mutex> alone(busy_, std::defer_lock);
    if (count <= 1 || threads_ <= 1 || !alone.try_lock()) {
        for (std::int64_t i = 0; i < count; ++i) function(context, i);
        return;
    }
    start_helpers();
    function_ = function;
    context_ = context;
    unfinished_.store(count, std::memory_order_relaxed);
    left_.store(count, std::memory_order_release);
    jobs_.fetch_add(1, std::memory_order_release);
    jobs_.notify_all();
    work();
    for (int spins = 0; unfinished_.load(std::memory_order_acquire) > 0; ++spins) {
        pause_briefly();
        if (spins > 1000) std::this_thread::yield();  // a helper has a piece but perhaps no processor
    }
}

}  // namespace fourfold
