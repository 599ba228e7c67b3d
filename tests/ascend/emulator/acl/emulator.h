// What the emulated runtime (libascendcl) offers to the emulated operators (libopapi).
//
// Device memory is host memory and every stream runs its work at once, in order; what an operator does is a
// closure, so that a captured graph can keep it and run it again.
#pragma once

#include <cstddef>
#include <functional>
#include <string>

namespace emulator {

struct Soc {
  const char* name;
  bool has_fp8;     // FP8, FP4 and their e8m0 scales
  bool aclnn_only;  // no operator may take the old aclop path
  size_t memory;    // bytes of HBM a device
  int cube_cores;
  int vector_cores;
};

// The chip that CANN_EMU_SOC names; ends the process with a message when it is none of those we know.
const Soc& soc();

// True where all of [address, address + bytes) lies in memory that the device allocator gave out.
bool on_device(const void* address, size_t bytes);

// Runs the work now, or records it where the stream is being captured.
void launch(void* stream, std::function<void()> work);

// Remembers why a call failed, for aclGetRecentErrMsg; returns `code`.
int fail(int code, const std::string& message);

}  // namespace emulator
