// What this machine can do at most: bytes read from memory, and multiply-adds in registers.  Measured, not looked
// up: a speed is a share of what the same cores reached in the same minute.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

namespace fourfold {

// Memory that is read from one end to the other.  Its pages lie where the threads that first read them run.
class ReadProbe {
public:
    ReadProbe(std::size_t bytes, int threads);
    ~ReadProbe();
    ReadProbe(const ReadProbe&) = delete;
    ReadProbe& operator=(const ReadProbe&) = delete;

    std::size_t bytes() const { return bytes_; }

    // Seconds in which `threads` threads read all of it once, each `streams` places at a time (1 to 16).
    double seconds(int threads, int streams) const;

private:
    std::size_t bytes_;
    char* memory_;
};

// A way to multiply and add on this processor: the type of the factors (f32, bf16, int8) and the unit that does it.
struct Multiplier {
    std::string type;
    std::string unit;
    double (*run)(double seconds, double* operations);  // one thread; returns the seconds that it took
};

// Those of this processor, the generic one first.
const std::vector<Multiplier>& multipliers();

// Operations a second (a multiply-add is two) of `threads` threads that do nothing else for `seconds`.
double peak(const Multiplier& multiplier, int threads, double seconds);

}  // namespace fourfold
