// Streams, events and captured graphs.
//
// A stream does its work at once, so events have nothing to wait for; they carry the time, and they carry a
// capture from the stream that began it to the streams that wait for it.
#include <acl/acl.h>
#include <acl/acl_rt.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <exception>
#include <mutex>
#include <set>
#include <vector>

#include "emulator.h"
#include "state.h"

namespace emulator {
namespace {

struct Graph {
  std::vector<std::function<void()>> work;
  std::set<struct Stream*> streams;
};

struct Stream {
  int32_t id;
  Graph* graph = nullptr;
};

struct Event {
  std::chrono::steady_clock::time_point time;
  Graph* graph = nullptr;
};

std::mutex mutex;
std::set<Graph*> captures;
std::atomic<int32_t> next_stream{1};

// torch_npu's default stream is one that it creates; a null stream is the device's own, never captured.
Stream* stream_of(void* handle) {
  static Stream device_stream{0};
  return handle ? static_cast<Stream*>(handle) : &device_stream;
}

Event* event_of(void* handle) { return static_cast<Event*>(handle); }

void join(Stream* stream, Graph* graph) {
  stream->graph = graph;
  graph->streams.insert(stream);
}

aclError refuse_capture(const char* call) {
  return fail(ACL_ERROR_RT_STREAM_CAPTURED, std::string(call) + " while a graph is captured");
}

}  // namespace

bool capturing() {
  std::lock_guard<std::mutex> lock(mutex);
  return !captures.empty();
}

bool capturing(void* stream) { return stream_of(stream)->graph != nullptr; }

void launch(void* stream, std::function<void()> work) {
  if (Graph* graph = stream_of(stream)->graph) {
    graph->work.push_back(std::move(work));  // recorded, and only recorded, as on the device
  } else {
    work();
  }
}

}  // namespace emulator

using namespace emulator;

extern "C" {
aclError aclrtCreateStreamWithConfig(aclrtStream* stream, uint32_t, uint32_t) {
  *stream = new Stream{next_stream++};
  return ACL_SUCCESS;
}

aclError aclrtCreateStream(aclrtStream* stream) { return aclrtCreateStreamWithConfig(stream, 0, 0); }

aclError aclrtDestroyStream(aclrtStream stream) {
  delete stream_of(stream);
  return ACL_SUCCESS;
}

aclError aclrtDestroyStreamForce(aclrtStream stream) { return aclrtDestroyStream(stream); }

aclError aclrtStreamGetId(aclrtStream stream, int32_t* id) {
  *id = stream_of(stream)->id;
  return ACL_SUCCESS;
}

aclError aclrtSynchronizeStream(aclrtStream stream) {
  return capturing(stream) ? refuse_capture("aclrtSynchronizeStream") : ACL_SUCCESS;
}

aclError aclrtSynchronizeStreamWithTimeout(aclrtStream stream, int32_t) {
  return aclrtSynchronizeStream(stream);
}

aclError aclrtSynchronizeDevice() {
  return capturing() ? refuse_capture("aclrtSynchronizeDevice") : ACL_SUCCESS;
}

aclError aclrtSynchronizeDeviceWithTimeout(int32_t) { return aclrtSynchronizeDevice(); }

aclError aclrtStreamQuery(aclrtStream stream, aclrtStreamStatus* status) {
  *status = ACL_STREAM_STATUS_COMPLETE;
  return capturing(stream) ? refuse_capture("aclrtStreamQuery") : ACL_SUCCESS;
}

aclError aclrtCreateEventExWithFlag(aclrtEvent* event, uint32_t) {
  *event = new Event;
  return ACL_SUCCESS;
}

aclError aclrtCreateEventWithFlag(aclrtEvent* event, uint32_t flag) {
  return aclrtCreateEventExWithFlag(event, flag);
}

aclError aclrtCreateEvent(aclrtEvent* event) { return aclrtCreateEventExWithFlag(event, 0); }

aclError aclrtDestroyEvent(aclrtEvent event) {
  delete event_of(event);
  return ACL_SUCCESS;
}

aclError aclrtRecordEvent(aclrtEvent event, aclrtStream stream) {
  event_of(event)->time = std::chrono::steady_clock::now();
  event_of(event)->graph = stream_of(stream)->graph;
  return ACL_SUCCESS;
}

aclError aclrtResetEvent(aclrtEvent, aclrtStream) { return ACL_SUCCESS; }

aclError aclrtStreamWaitEvent(aclrtStream stream, aclrtEvent event) {
  std::lock_guard<std::mutex> lock(mutex);
  Graph* graph = event_of(event)->graph;
  if (graph && captures.count(graph)) join(stream_of(stream), graph);
  return ACL_SUCCESS;
}

aclError aclrtSynchronizeEvent(aclrtEvent event) {
  bool captured = false;
  {
    std::lock_guard<std::mutex> lock(mutex);
    captured = captures.count(event_of(event)->graph) > 0;
  }
  return captured ? fail(ACL_ERROR_RT_EVENT_CAPTURED, "aclrtSynchronizeEvent on a captured event") : ACL_SUCCESS;
}

aclError aclrtQueryEventStatus(aclrtEvent, aclrtEventRecordedStatus* status) {
  *status = ACL_EVENT_RECORDED_STATUS_COMPLETE;
  return ACL_SUCCESS;
}

aclError aclrtQueryEventWaitStatus(aclrtEvent, aclrtEventWaitStatus* status) {
  *status = ACL_EVENT_WAIT_STATUS_COMPLETE;
  return ACL_SUCCESS;
}

aclError aclrtEventElapsedTime(float* milliseconds, aclrtEvent begin, aclrtEvent end) {
  auto passed = event_of(end)->time - event_of(begin)->time;
  *milliseconds = std::chrono::duration<float, std::milli>(passed).count();
  return ACL_SUCCESS;
}

aclError aclmdlRICaptureBegin(aclrtStream stream, aclmdlRICaptureMode) {
  std::lock_guard<std::mutex> lock(mutex);
  if (stream_of(stream)->graph) return refuse_capture("aclmdlRICaptureBegin");
  auto* graph = new Graph;
  captures.insert(graph);
  join(stream_of(stream), graph);
  return ACL_SUCCESS;
}

aclError aclmdlRICaptureGetInfo(aclrtStream stream, aclmdlRICaptureStatus* status, aclmdlRI* model) {
  Graph* graph = stream_of(stream)->graph;
  *status = graph ? ACL_MODEL_RI_CAPTURE_STATUS_ACTIVE : ACL_MODEL_RI_CAPTURE_STATUS_NONE;
  if (model) *model = graph;
  return ACL_SUCCESS;
}

aclError aclmdlRICaptureEnd(aclrtStream stream, aclmdlRI* model) {
  std::lock_guard<std::mutex> lock(mutex);
  Graph* graph = stream_of(stream)->graph;
  if (!graph) return fail(ACL_ERROR_RT_STREAM_NOT_CAPTURED, "aclmdlRICaptureEnd without a capture");
  for (Stream* member : graph->streams) member->graph = nullptr;
  captures.erase(graph);
  *model = graph;
  return ACL_SUCCESS;
}

aclError aclmdlRIExecuteAsync(aclmdlRI model, aclrtStream) {
  try {
    for (auto& work : static_cast<Graph*>(model)->work) work();
    return ACL_SUCCESS;
  } catch (const std::exception& why) {
    return fail(ACL_ERROR_RT_FAILURE, std::string("a replayed graph: ") + why.what());
  }
}

aclError aclmdlRIDestroy(aclmdlRI model) {
  delete static_cast<Graph*>(model);
  return ACL_SUCCESS;
}

aclError aclmdlRICaptureThreadExchangeMode(aclmdlRICaptureMode*) { return ACL_SUCCESS; }

aclError aclrtSetStreamAttribute(aclrtStream, aclrtStreamAttr, aclrtStreamAttrValue*) { return ACL_SUCCESS; }
aclError aclrtSubscribeReport(uint64_t, aclrtStream) { return ACL_SUCCESS; }
aclError aclrtUnSubscribeReport(uint64_t, aclrtStream) { return ACL_SUCCESS; }

aclError aclrtProcessReport(int32_t) {
  usleep(1000);
  return ACL_SUCCESS;
}
}
