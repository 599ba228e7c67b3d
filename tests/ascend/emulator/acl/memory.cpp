// Device memory: host memory that is counted, bounded, and filled with NaN before its first use.
#include <acl/acl.h>
#include <sys/mman.h>

#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>

#include "emulator.h"
#include "state.h"

namespace emulator {
namespace {

// Address -> size.  The device's ranges also hold what is reserved for mapping.
struct Ranges {
  std::map<const char*, size_t> held;

  bool covers(const void* address, size_t bytes) const {
    const char* begin = static_cast<const char*>(address);
    auto after = held.upper_bound(begin);
    if (after == held.begin()) return false;
    auto range = std::prev(after);
    return begin + bytes <= range->first + range->second;
  }

  size_t forget(const void* address) {
    auto range = held.find(static_cast<const char*>(address));
    if (range == held.end()) return 0;
    size_t bytes = range->second;
    held.erase(range);
    return bytes;
  }
};

std::mutex mutex;
Ranges device, host;
size_t used = 0;

struct Physical {
  size_t bytes;
};

bool take(size_t bytes) {
  std::lock_guard<std::mutex> lock(mutex);
  if (used + bytes > soc().memory * device_count()) return false;
  used += bytes;
  return true;
}

void* aligned(size_t bytes, size_t alignment) {
  void* address = nullptr;
  return posix_memalign(&address, alignment, bytes ? bytes : alignment) ? nullptr : address;
}

}  // namespace

bool on_device(const void* address, size_t bytes) {
  std::lock_guard<std::mutex> lock(mutex);
  return bytes == 0 || device.covers(address, bytes);
}

bool is_pinned(const void* address) {
  std::lock_guard<std::mutex> lock(mutex);
  return host.covers(address, 1);
}

}  // namespace emulator

using namespace emulator;

namespace {

aclError check_copy(const void* to, const void* from, size_t bytes, aclrtMemcpyKind kind) {
  bool to_device = kind == ACL_MEMCPY_HOST_TO_DEVICE || kind == ACL_MEMCPY_DEVICE_TO_DEVICE;
  bool from_device = kind == ACL_MEMCPY_DEVICE_TO_HOST || kind == ACL_MEMCPY_DEVICE_TO_DEVICE;
  if (on_device(to, bytes) != to_device && bytes) {
    return fail(ACL_ERROR_RT_PARAM_INVALID, "a copy's target is not where its kind says");
  }
  if (on_device(from, bytes) != from_device && bytes) {
    return fail(ACL_ERROR_RT_PARAM_INVALID, "a copy's source is not where its kind says");
  }
  return ACL_SUCCESS;
}

}  // namespace

extern "C" {
aclError aclrtGetMemInfo(aclrtMemAttr, size_t* free, size_t* total) {
  std::lock_guard<std::mutex> lock(mutex);
  *total = soc().memory;
  *free = used < *total ? *total - used : 0;
  return ACL_SUCCESS;
}

aclError aclrtMalloc(void** address, size_t bytes, aclrtMemMallocPolicy) {
  if (!take(bytes)) return fail(ACL_ERROR_RT_MEMORY_ALLOCATION, "the device's memory is full");
  *address = aligned(bytes, 512);
  if (!*address) return ACL_ERROR_BAD_ALLOC;
  memset(*address, 0xff, bytes);
  std::lock_guard<std::mutex> lock(mutex);
  device.held[static_cast<char*>(*address)] = bytes;
  return ACL_SUCCESS;
}

aclError aclrtMallocAlign32(void** address, size_t bytes, aclrtMemMallocPolicy policy) {
  return aclrtMalloc(address, bytes, policy);
}

aclError aclrtFree(void* address) {
  {
    std::lock_guard<std::mutex> lock(mutex);
    used -= device.forget(address);
  }
  free(address);
  return ACL_SUCCESS;
}

aclError aclrtMallocHost(void** address, size_t bytes) {
  *address = aligned(bytes, 64);
  std::lock_guard<std::mutex> lock(mutex);
  host.held[static_cast<char*>(*address)] = bytes;
  return ACL_SUCCESS;
}

aclError aclrtFreeHost(void* address) {
  {
    std::lock_guard<std::mutex> lock(mutex);
    host.forget(address);
  }
  free(address);
  return ACL_SUCCESS;
}

aclError aclrtMemset(void* address, size_t, int32_t value, size_t bytes) {
  if (capturing()) return fail(ACL_ERROR_RT_STREAM_CAPTURED, "aclrtMemset while a graph is captured");
  memset(address, value, bytes);
  return ACL_SUCCESS;
}

aclError aclrtMemsetAsync(void* address, size_t, int32_t value, size_t bytes, aclrtStream stream) {
  launch(stream, [=] { memset(address, value, bytes); });
  return ACL_SUCCESS;
}

aclError aclrtMemcpy(void* to, size_t, const void* from, size_t bytes, aclrtMemcpyKind kind) {
  if (capturing()) return fail(ACL_ERROR_RT_STREAM_CAPTURED, "aclrtMemcpy while a graph is captured");
  if (aclError error = check_copy(to, from, bytes, kind)) return error;
  memmove(to, from, bytes);
  return ACL_SUCCESS;
}

aclError aclrtMemcpyAsync(
    void* to, size_t, const void* from, size_t bytes, aclrtMemcpyKind kind, aclrtStream stream) {
  if (aclError error = check_copy(to, from, bytes, kind)) return error;
  const void* on_host = kind == ACL_MEMCPY_DEVICE_TO_HOST ? to : from;
  if (kind != ACL_MEMCPY_DEVICE_TO_DEVICE && capturing(stream) && !is_pinned(on_host)) {
    return fail(
        ACL_ERROR_RT_CAPTURE_MODE_BLOCK_ASYNC, "a copy of pageable host memory while the stream is captured");
  }
  launch(stream, [=] { memmove(to, from, bytes); });
  return ACL_SUCCESS;
}

// Virtual memory: the whole reservation is device memory at once, physical pages are only counted.
aclError aclrtReserveMemAddress(void** address, size_t bytes, size_t, void*, uint64_t) {
  int protection = PROT_READ | PROT_WRITE, flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
  *address = mmap(nullptr, bytes, protection, flags, -1, 0);
  if (*address == MAP_FAILED) return ACL_ERROR_BAD_ALLOC;
  std::lock_guard<std::mutex> lock(mutex);
  device.held[static_cast<char*>(*address)] = bytes;
  return ACL_SUCCESS;
}

aclError aclrtReleaseMemAddress(void* address) {
  std::lock_guard<std::mutex> lock(mutex);
  munmap(address, device.forget(address));
  return ACL_SUCCESS;
}

aclError aclrtMallocPhysical(aclrtDrvMemHandle* handle, size_t bytes, const aclrtPhysicalMemProp*, uint64_t) {
  if (!take(bytes)) return ACL_ERROR_RT_MEMORY_ALLOCATION;
  *handle = reinterpret_cast<aclrtDrvMemHandle>(new Physical{bytes});
  return ACL_SUCCESS;
}

aclError aclrtFreePhysical(aclrtDrvMemHandle handle) {
  auto* physical = reinterpret_cast<Physical*>(handle);
  std::lock_guard<std::mutex> lock(mutex);
  used -= physical->bytes;
  delete physical;
  return ACL_SUCCESS;
}

aclError aclrtMapMem(void*, size_t, size_t, aclrtDrvMemHandle, uint64_t) { return ACL_SUCCESS; }
aclError aclrtUnmapMem(void*) { return ACL_SUCCESS; }
}
