// Threads that share out numbered pieces of work.  The caller works too and never waits for a thread that has
// not begun: on a busy machine a late helper costs nothing.
#pragma once

#include <atomic>
#include <cstdint>
#include <mutex>
#include <type_traits>
#include <vector>

namespace fourfold {

class ThreadPool {
public:
    // The one pool of the process.  Its helper threads start with the first work that is worth sharing.
    static ThreadPool& instance();

    // Threads that work at once, the caller included.
    int threads() const { return threads_; }
    void set_threads(int threads);

    // Groups of processors: helper k stays on those of group k mod n.  None: the system places the helpers.
    // For helpers that have not started yet.
    void place_helpers(std::vector<std::vector<int>> processors);

    // piece(0) .. piece(count - 1), each once, in any order and on any thread; returns when all are done.
    // A second caller at the same time, or one inside a piece, does its own pieces alone.
    template <class Piece>
    void run(std::int64_t count, Piece&& piece) {
        using Body = std::remove_reference_t<Piece>;
        run(count, [](void* context, std::int64_t i) { (*static_cast<Body*>(context))(i); }, &piece);
    }

private:
    using Function = void (*)(void* context, std::int64_t piece);
    void run(std::int64_t count, Function function, void* context);
    void start_helpers();
    void help(int number);
    void work();  // claim pieces of the current job until none is left

    std::atomic<int> threads_{1};
    int helpers_ = 0;
    std::vector<std::vector<int>> processors_;
    std::mutex busy_;

    // Pieces left to claim, counted down.  A helper that claims one knows that the job below is the current
    // one, because run() does not return, and so no other job can begin, before every piece is done.
    std::atomic<std::int64_t> left_{0};
    std::atomic<std::int64_t> unfinished_{0};
    std::atomic<std::uint32_t> jobs_{0};  // grows with each job; helpers sleep on it
    Function function_ = nullptr;
    void* context_ = nullptr;
};

}  // namespace fourfold
