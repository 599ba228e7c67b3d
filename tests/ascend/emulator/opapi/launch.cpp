// The second half of a call: run the body, or record it; and the list of entry points that were used.
#include <ATen/core/LegacyTypeDispatch.h>

#include <cstdlib>
#include <fstream>
#include <mutex>
#include <set>

#include "../acl/emulator.h"
#include "entry.h"

namespace emulator {
namespace {

// CANN_EMU_USED names a file that gets each entry point's name when it is first run.
void note(const char* name) {
  static const char* path = getenv("CANN_EMU_USED");
  static std::mutex mutex;
  static std::set<std::string> noted;
  if (!path) return;
  std::lock_guard<std::mutex> lock(mutex);
  if (noted.insert(name).second) std::ofstream(path, std::ios::app) << name << '\n';
}

thread_local bool checking = false;

}  // namespace

bool only_checking() { return checking; }

void check(const std::function<void()>& body) {
  checking = true;
  try {
    body();
  } catch (...) {
    checking = false;
    throw;
  }
  checking = false;
}

int refuse(const char* name, const std::exception& why) {
  return fail(kInvalidArgument, std::string(name) + ": " + why.what());
}

int run(aclOpExecutor* executor, void* stream) {
  std::unique_ptr<aclOpExecutor> call(executor);
  note(call->name);
  try {
    launch(stream, [work = call->work] {
      at::AutoDispatchBelowADInplaceOrView no_autograd;
      work();
    });
    return 0;
  } catch (const std::exception& why) {
    return refuse(call->name, why);
  }
}

}  // namespace emulator
