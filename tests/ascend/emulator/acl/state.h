// State that the files of the emulated runtime share.
#pragma once

#include <cstdint>

namespace emulator {

int device_count();
extern thread_local int32_t current_device;

// True for memory that the device may copy from while the host goes on (aclrtMallocHost).
bool is_pinned(const void* address);

// True while any stream is being captured.
bool capturing();
bool capturing(void* stream);

}  // namespace emulator
