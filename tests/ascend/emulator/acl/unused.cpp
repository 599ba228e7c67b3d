// What torch_npu links against and our model never reaches: profiling, dumps, sharing between processes.
//
// What would only switch something on says yes; what would have to bring something fails.
#include <acl/acl.h>
#include <acl/acl_dump.h>
#include <acl/acl_mdl.h>
#include <acl/acl_rt.h>

#include "emulator.h"

namespace {

aclError absent(const char* call) {
  return emulator::fail(ACL_ERROR_FEATURE_UNSUPPORTED, std::string(call) + " is not emulated");
}

int64_t options[8];

}  // namespace

extern "C" {
aclError aclrtPeekAtLastError(aclrtLastErrLevel) { return ACL_SUCCESS; }
aclError aclrtGetLastError(aclrtLastErrLevel) { return ACL_SUCCESS; }
aclError aclrtSetOpWaitTimeout(uint32_t) { return ACL_SUCCESS; }
aclError aclrtSetOpExecuteTimeOut(uint32_t) { return ACL_SUCCESS; }
aclError aclrtSetDeviceSatMode(aclrtFloatOverflowMode) { return ACL_SUCCESS; }
aclError aclrtSetStreamFailureMode(aclrtStream, uint64_t) { return ACL_SUCCESS; }
aclError aclrtCtxSetSysParamOpt(aclSysParamOpt, int64_t) { return ACL_SUCCESS; }

aclError aclrtSetSysParamOpt(aclSysParamOpt option, int64_t value) {
  options[option] = value;
  return ACL_SUCCESS;
}

aclError aclrtGetSysParamOpt(aclSysParamOpt option, int64_t* value) {
  *value = options[option];
  return ACL_SUCCESS;
}

aclError aclmdlInitDump() { return ACL_SUCCESS; }
aclError aclmdlSetDump(const char*) { return ACL_SUCCESS; }
aclError aclmdlFinalizeDump() { return ACL_SUCCESS; }
uint64_t MsprofGetHashId(const char*, size_t) { return 0; }
int32_t MsprofRegisterCallback(uint32_t, void*) { return 0; }
int32_t MsprofReportAdditionalInfo(uint32_t, const void*, uint32_t) { return 0; }
int32_t MsprofReportApi(uint32_t, const void*) { return 0; }
int32_t MsprofReportCompactInfo(uint32_t, const void*, uint32_t) { return 0; }
uint64_t MsprofSysCycleTime() { return 0; }

aclError aclrtMemExportToShareableHandle(aclrtDrvMemHandle, aclrtMemHandleType, uint64_t, uint64_t*) {
  return absent(__func__);
}
aclError aclrtMemImportFromShareableHandle(uint64_t, int32_t, aclrtDrvMemHandle*) { return absent(__func__); }
aclError aclrtMemSetPidToShareableHandle(uint64_t, int32_t*, size_t) { return absent(__func__); }
aclError aclrtBinaryGetFunction(const aclrtBinHandle, const char*, aclrtFuncHandle*) {
  return absent(__func__);
}
aclError aclrtBinaryLoadFromData(const void*, size_t, const aclrtBinaryLoadOptions*, aclrtBinHandle*) {
  return absent(__func__);
}
aclError aclrtGetFunctionAddr(aclrtFuncHandle, void**, void**) { return absent(__func__); }
int rtDevBinaryRegister(const void*, void**) { return absent(__func__); }
int rtFunctionRegister(void*, const void*, const char*, const void*, uint32_t) { return absent(__func__); }
int rtGetC2cCtrlAddr(uint64_t*, uint32_t*) { return absent(__func__); }
int rtKernelLaunch(const void*, uint32_t, void*, uint32_t, void*, void*) { return absent(__func__); }
}
