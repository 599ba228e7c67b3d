// Scratch memory that a thread keeps: no allocation in the usual call.
#pragma once

#include <memory>
#include <new>

#include "matrix.h"

namespace fourfold {

class Scratch {
public:
    // Room for `count` values, aligned to a cache line; what it held is lost when it grows.
    template <class T>
    T* get(index_t count) {
        const index_t bytes = count * index_t(sizeof(T));
        if (bytes > size_) {
            memory_.reset(static_cast<char*>(::operator new(bytes, kAlign)));
            size_ = bytes;
        }
        return reinterpret_cast<T*>(memory_.get());
    }
    float* floats(index_t count) { return get<float>(count); }

private:
    static constexpr std::align_val_t kAlign{64};
    struct Free {
        void operator()(char* p) const { ::operator delete(p, kAlign); }
    };
    std::unique_ptr<char, Free> memory_;
    index_t size_ = 0;
};

}  // namespace fourfold
