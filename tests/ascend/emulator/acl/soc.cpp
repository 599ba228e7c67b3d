// Which chip is emulated, how many of it, and what it says about itself.
#include <acl/acl.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <mutex>

#include "emulator.h"
#include "state.h"

namespace emulator {
namespace {

constexpr size_t kGiB = size_t{1} << 30;
constexpr char kCann[] = "9.1.0";
const Soc kKnown[] = {
    {"Ascend910B1", false, false, 64 * kGiB, 24, 48},
    {"Ascend910_9391", false, false, 64 * kGiB, 24, 48},
    {"Ascend950DT_950x", true, true, 96 * kGiB, 32, 64},
};

const Soc& named(const char* name) {
  for (const Soc& soc : kKnown) {
    if (strcmp(soc.name, name) == 0) return soc;
  }
  fprintf(stderr, "CANN_EMU_SOC is %s; allowed: Ascend910B1, Ascend910_9391, Ascend950DT_950x\n", name);
  exit(2);
}

thread_local std::string last_error;

}  // namespace

const Soc& soc() {
  static const char* name = getenv("CANN_EMU_SOC");
  static const Soc& chip = named(name ? name : "Ascend910B1");
  return chip;
}

int fail(int code, const std::string& message) {
  last_error = "emulated CANN: " + message;
  fprintf(stderr, "%s (error %d)\n", last_error.c_str(), code);
  return code;
}

int device_count() {
  static const char* count = getenv("CANN_EMU_DEVICES");
  return count ? atoi(count) : 8;
}

thread_local int32_t current_device = 0;

}  // namespace emulator

using namespace emulator;

extern "C" {
aclError aclInit(const char*) { return ACL_SUCCESS; }
aclError aclFinalize() { return ACL_SUCCESS; }
void aclAppLog(aclLogLevel, const char*, const char*, uint32_t, const char*, ...) {}
const char* aclGetRecentErrMsg() { return last_error.c_str(); }
const char* aclrtGetSocName() { return soc().name; }

aclError aclsysGetCANNVersion(aclCANNPackageName, aclCANNPackageVersion* version) {
  strcpy(version->version, kCann);
  return ACL_SUCCESS;
}

aclError aclsysGetVersionStr(char*, char* version) {
  strcpy(version, kCann);
  return ACL_SUCCESS;
}

aclError aclrtGetDeviceCount(uint32_t* count) {
  *count = device_count();
  return ACL_SUCCESS;
}

aclError aclrtSetDevice(int32_t device) {
  if (device < 0 || device >= device_count()) return fail(ACL_ERROR_RT_INVALID_DEVICEID, "no such device");
  current_device = device;
  return ACL_SUCCESS;
}

aclError aclrtResetDevice(int32_t) { return ACL_SUCCESS; }

aclError aclrtGetDevice(int32_t* device) {
  *device = current_device;
  return ACL_SUCCESS;
}

// A context is its device's number plus one, so that none of them is null.
aclError aclrtSetCurrentContext(aclrtContext context) {
  return aclrtSetDevice(static_cast<int32_t>(reinterpret_cast<intptr_t>(context)) - 1);
}

aclError aclrtGetCurrentContext(aclrtContext* context) {
  *context = reinterpret_cast<aclrtContext>(static_cast<intptr_t>(current_device + 1));
  return ACL_SUCCESS;
}

aclError aclGetDeviceCapability(uint32_t, aclDeviceInfo what, int64_t* value) {
  constexpr int64_t kL2 = 192 << 20;
  *value = what == ACL_DEVICE_INFO_L2_SIZE            ? kL2
           : what == ACL_DEVICE_INFO_VECTOR_CORE_NUM ? soc().vector_cores
                                                      : soc().cube_cores;
  return ACL_SUCCESS;
}

aclError aclrtGetDeviceInfo(uint32_t, aclrtDevAttr what, int64_t* value) {
  *value = what == ACL_DEV_ATTR_VECTOR_CORE_NUM ? soc().vector_cores : soc().cube_cores;
  return ACL_SUCCESS;
}

aclError aclrtDeviceCanAccessPeer(int32_t* can, int32_t, int32_t) {
  *can = 1;
  return ACL_SUCCESS;
}

aclError aclrtDeviceEnablePeerAccess(int32_t, uint32_t) { return ACL_SUCCESS; }

aclError aclrtDeviceGetBareTgid(int32_t* pid) {
  *pid = getpid();
  return ACL_SUCCESS;
}
}
