// Scratch memory that a thread keeps: no allocation in the usual call.
#pragma once

#include <memory>
#include <new>

#include "matrix.h"

namespace fourfold {

class Scratch {
public:
    // Room for `count` floats, aligned to a cache line; what it held is lost when it grows.
    float* floats(index_t count) {
        if (count > size_) {
            memory_.reset(static_cast<float*>(::operator new(count * sizeof(float), kAlign)));
            size_ = count;
        }
        return memory_.get();
    }

private:
    static constexpr std::align_val_t kAlign{64};
    struct Free {
        void operator()(float* p) const { ::operator delete(p, kAlign); }
    };
    std::unique_ptr<float, Free> memory_;
    index_t size_ = 0;
};

}  // namespace fourfold
