// The emulated driver, libcuda.so.1: the functions that a program calls, under the names and numbers of CUDA's driver.
//
// LECTERN_EMULATOR_DEVICES (1), LECTERN_EMULATOR_CAPABILITY (90) and LECTERN_EMULATOR_DRIVER (13000) say what it claims
// to be. What CUDA answers with an error is answered so; what it lets pass to go wrong later ends the program.
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <mutex>
#include <set>
#include <string>
#include <vector>

#include "errors.hpp"
#include "faults.hpp"
#include "image.hpp"
#include "memory.hpp"
#include "work.hpp"

using namespace emulator;

namespace {

struct Module {
    void* library;
    std::vector<Function*> functions;
};

std::mutex all;
std::set<Stream*> streams;
std::set<Graph*> graphs, launchable;
std::set<Module*> modules;
std::set<Function*> functions;
std::set<Event*> events;
Stream default_stream;
bool initialised = false;
int stuck_with = Success;
char context;
thread_local void* current = nullptr;

long number_of(const char* name, long otherwise) {
    const char* text = getenv(name);
    return text ? strtol(text, nullptr, 10) : otherwise;
}

// What a call must return before it does anything, and 0.
int enter(const char* name, bool wants_context) {
    if (stuck_with) return stuck_with;
    if (const int code = asked(name)) {
        if (sticks(code)) stuck_with = code;
        return code;
    }
    if (!initialised) return NotInitialized;
    return wants_context && current == nullptr ? InvalidContext : Success;
}

// What every function below begins with.
#define ENTER(wants_context)                                                                                           \
    std::lock_guard<std::mutex> guard(all);                                                                            \
    if (const int code = enter(__func__, wants_context)) return code

bool recording() {
    for (Stream* stream : streams) {
        if (stream->recording) return true;
    }
    return false;
}

// What may not happen while a stream records: it spoils the recording.
int refused() {
    bool any = false;
    for (Stream* stream : streams) {
        if (stream->recording) any = stream->spoiled = true;
    }
    return any ? StreamCaptureUnsupported : Success;
}

Stream* stream_of(Stream* handle) {
    if (handle == nullptr) return &default_stream;
    return streams.count(handle) ? handle : nullptr;
}

Node filling(void* to, uint32_t pattern, uint32_t pattern_bytes, size_t count) {
    Node node{Node::Kind::Fill};
    node.to = to;
    node.pattern = pattern;
    node.pattern_bytes = pattern_bytes;
    node.bytes = count * pattern_bytes;
    return node;
}

int put_on(Stream* handle, Node node) {
    Stream* stream = stream_of(handle);
    if (!stream) return InvalidHandle;
    put(*stream, std::move(node));
    return Success;
}

int from_host(void* to, const void* from, size_t bytes, Stream* handle) {
    Stream* stream = stream_of(handle);
    if (!stream) return InvalidHandle;
    usable(from, bytes, "a copy from the host");
    if (!within(to, bytes)) emulator_wrong("a copy to the device: %zu bytes at %p lie in no allocation", bytes, to);
    Node node{pinned(from) ? Node::Kind::Copy : Node::Kind::Give};
    node.to = to;
    node.from = from;
    node.bytes = bytes;
    if (node.kind == Node::Kind::Give) {
        if (stream->recording) return refused();
        node.given.assign(static_cast<const char*>(from), static_cast<const char*>(from) + bytes);
    }
    put(*stream, std::move(node));
    return Success;
}

int to_host(void* to, const void* from, size_t bytes, Stream* handle) {
    Stream* stream = stream_of(handle);
    if (!stream) return InvalidHandle;
    if (!within(from, bytes)) emulator_wrong("a copy from the device: %zu bytes at %p lie in no allocation", bytes, from);
    usable(to, bytes, "a copy to the host");
    if (pinned(to)) {
        if (!stream->recording) spoil(to, bytes);
        Node node{Node::Kind::Copy};
        node.to = to;
        node.from = from;
        node.bytes = bytes;
        put(*stream, std::move(node));
        return Success;
    }
    if (const int code = refused()) return code;
    finish();
    memcpy(to, from, bytes);
    return Success;
}

int attribute(int which) {
    const long capability = number_of("LECTERN_EMULATOR_CAPABILITY", 90);
    switch (which) {
    case 1: case 2: case 3: return 1024;        // threads of a block, and along two axes
    case 4: return 64;                          // threads along the third
    case 5: return 0x7fffffff;                  // blocks along each axis
    case 6: case 7: return 65535;
    case 8: return 48 << 10;                    // shared memory of a block
    case 9: return 64 << 10;                    // constant memory
    case 10: return 32;                         // warp
    case 12: case 82: return 65536;             // registers
    case 13: return 1980000;                    // kHz
    case 16: return 4;                          // multiprocessors
    case 36: return 2619000;                    // kHz of the memory
    case 37: return 5120;                       // bits of its bus
    case 38: return 50 << 20;                   // second cache
    case 39: return 2048;                       // threads of a multiprocessor
    case 31: case 41: case 95: case 115: return 1;
    case 75: return int(capability / 10);
    case 76: return int(capability % 10);
    case 81: return 228 << 10;                  // shared memory of a multiprocessor
    case 97: return 227 << 10;                  // shared memory of a block that asks
    case 106: return 32;                        // blocks of a multiprocessor
    default: return 0;
    }
}

int launch(Function* function, Three blocks, Three threads, uint32_t shared, Stream* handle, void** arguments) {
    Stream* stream = stream_of(handle);
    if (!stream || !functions.count(function)) return InvalidHandle;
    const Kernel& kernel = *function->kernel;
    if (blocks.x == 0 || blocks.y == 0 || blocks.z == 0 || threads.x == 0) return InvalidValue;
    if (blocks.x > 0x7fffffffu || blocks.y > 65535 || blocks.z > 65535 || threads.x > 1024) return InvalidValue;
    if (threads.y != 1 || threads.z != 1) emulator_wrong("kernel %s: blocks of more than one axis", kernel.name);
    if (kernel.most_threads && threads.x > kernel.most_threads) return InvalidValue;
    if (shared > function->most_shared) return InvalidValue;
    Node node{Node::Kind::Run};
    node.function = function;
    node.blocks = blocks;
    node.threads = threads.x;
    node.shared_bytes = shared;
    for (uint32_t i = 0; i < kernel.parameters; ++i) {
        uint64_t value = 0;
        memcpy(&value, arguments[i], kernel.bytes[i]);
        node.arguments.push_back(value);
    }
    put(*stream, std::move(node));
    return Success;
}

int load(Module** module, const char* image) {
    const std::string path = image_path(image, number_of("LECTERN_EMULATOR_CAPABILITY", 90));
    if (path.empty()) return InvalidImage;
    // The emulated compiler is of 13.0.
    if (number_of("LECTERN_EMULATOR_DRIVER", 13000) < 13000) return UnsupportedPtxVersion;
    if (path == image_of_another) return NoBinaryForGpu;
    // The file's kernels call this library.
    Dl_info self;
    if (dladdr(reinterpret_cast<void*>(&load), &self)) dlopen(self.dli_fname, RTLD_NOW | RTLD_NOLOAD | RTLD_GLOBAL);
    void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr) {
        fprintf(stderr, "emulator: %s\n", dlerror());
        return InvalidImage;
    }
    auto list = static_cast<const Kernel*>(dlsym(library, "emulator_kernels"));
    auto begin = reinterpret_cast<char* (*)()>(dlsym(library, "emulator_shared_begin"));
    auto end = reinterpret_cast<char* (*)()>(dlsym(library, "emulator_shared_end"));
    if (!list || !begin || !end) return InvalidImage;
    *module = new Module{library, {}};
    modules.insert(*module);
    for (; list->name; ++list) {
        Function* function = new Function{list, begin(), end(), uint32_t(attribute(8))};
        functions.insert(function);
        (*module)->functions.push_back(function);
    }
    return Success;
}

}  // namespace

extern "C" {

// ---------------------------------------------------------------------------------------------- the driver

int cuInit(unsigned) {
    std::lock_guard<std::mutex> guard(all);
    if (const int code = asked("cuInit")) return code;
    if (number_of("LECTERN_EMULATOR_DEVICES", 1) == 0) return NoDevice;
    initialised = true;
    return Success;
}

int cuDriverGetVersion(int* version) {
    std::lock_guard<std::mutex> guard(all);
    if (const int code = asked("cuDriverGetVersion")) return code;
    *version = int(number_of("LECTERN_EMULATOR_DRIVER", 13000));
    return Success;
}

int cuGetErrorName(int result, const char** name) {
    *name = name_of(result);
    return *name ? Success : InvalidValue;
}

int cuGetErrorString(int result, const char** text) { return cuGetErrorName(result, text); }

// ---------------------------------------------------------------------------------------------- devices

int cuDeviceGetCount(int* count) {
    ENTER(false);
    *count = int(number_of("LECTERN_EMULATOR_DEVICES", 1));
    return Success;
}

int cuDeviceGet(int* device, int ordinal) {
    ENTER(false);
    if (ordinal < 0 || ordinal >= number_of("LECTERN_EMULATOR_DEVICES", 1)) return InvalidDevice;
    *device = ordinal;
    return Success;
}

int cuDeviceGetName(char* name, int bytes, int) {
    ENTER(false);
    snprintf(name, size_t(bytes), "emulated device");
    return Success;
}

int cuDeviceGetUuid_v2(char* uuid, int device) {
    ENTER(false);
    memset(uuid, device, 16);
    return Success;
}

int cuDeviceTotalMem_v2(size_t* bytes, int) {
    ENTER(false);
    *bytes = memory_total();
    return Success;
}

int cuDeviceGetAttribute(int* value, int which, int) {
    ENTER(false);
    *value = attribute(which);
    return Success;
}

// ---------------------------------------------------------------------------------------------- contexts

int cuDevicePrimaryCtxRetain(void** handle, int) {
    ENTER(false);
    *handle = &context;
    return Success;
}

int cuDevicePrimaryCtxRelease_v2(int) {
    ENTER(false);
    finish();
    return Success;
}

int cuCtxGetCurrent(void** handle) {
    ENTER(false);
    *handle = current;
    return Success;
}

int cuCtxSetCurrent(void* handle) {
    ENTER(false);
    if (handle && handle != &context) return InvalidContext;
    current = handle;
    return Success;
}

int cuCtxGetDevice(int* device) {
    ENTER(true);
    *device = 0;
    return Success;
}

int cuCtxSynchronize() {
    ENTER(true);
    if (const int code = refused()) return code;
    finish();
    return Success;
}

int cuCtxSetFlags(unsigned) {
    ENTER(true);
    return Success;
}

int cuCtxSetLimit(int, size_t) {
    ENTER(true);
    return Success;
}

int cuCtxGetStreamPriorityRange(int* least, int* greatest) {
    ENTER(true);
    *least = 0;
    *greatest = -5;
    return Success;
}

// ---------------------------------------------------------------------------------------------- memory

int cuMemGetInfo_v2(size_t* unused, size_t* total) {
    ENTER(true);
    *unused = memory_free();
    *total = memory_total();
    return Success;
}

int cuMemAlloc_v2(void** pointer, size_t bytes) {
    ENTER(true);
    if (const int code = refused()) return code;
    if (bytes == 0) return InvalidValue;
    *pointer = allocate(bytes);
    return *pointer ? Success : OutOfMemory;
}

int cuMemAllocAsync(void** pointer, size_t bytes, Stream* stream) {
    ENTER(true);
    if (!stream_of(stream)) return InvalidHandle;
    if (const int code = refused()) return code;
    if (bytes == 0) return InvalidValue;
    *pointer = allocate(bytes);
    return *pointer ? Success : OutOfMemory;
}

int cuMemFree_v2(void* pointer) {
    ENTER(true);
    if (const int code = refused()) return code;
    finish();
    if (pointer && !release(pointer)) emulator_wrong("cuMemFree of %p, which is no memory of the device", pointer);
    return Success;
}

int cuMemFreeAsync(void* pointer, Stream* stream) {
    ENTER(true);
    if (const int code = refused()) return code;
    if (pointer == nullptr) return InvalidValue;
    Node node{Node::Kind::Release};
    node.to = pointer;
    return put_on(stream, std::move(node));
}

int cuMemHostAlloc(void** pointer, size_t bytes, unsigned) {
    ENTER(true);
    if (const int code = refused()) return code;
    *pointer = pin(bytes);
    return *pointer ? Success : OutOfMemory;
}

int cuMemAllocHost_v2(void** pointer, size_t bytes) {
    ENTER(true);
    if (const int code = refused()) return code;
    *pointer = pin(bytes);
    return *pointer ? Success : OutOfMemory;
}

int cuMemFreeHost(void* pointer) {
    ENTER(true);
    finish();
    if (!unpin(pointer)) emulator_wrong("cuMemFreeHost of %p, which is no pinned memory", pointer);
    return Success;
}

int cuMemcpyHtoD_v2(void* to, const void* from, size_t bytes) {
    ENTER(true);
    if (const int code = refused()) return code;
    if (const int code = from_host(to, from, bytes, nullptr)) return code;
    finish();
    return Success;
}

int cuMemcpyHtoDAsync_v2(void* to, const void* from, size_t bytes, Stream* stream) {
    ENTER(true);
    return from_host(to, from, bytes, stream);
}

int cuMemcpyDtoH_v2(void* to, const void* from, size_t bytes) {
    ENTER(true);
    if (const int code = refused()) return code;
    if (const int code = to_host(to, from, bytes, nullptr)) return code;
    finish();
    return Success;
}

int cuMemcpyDtoHAsync_v2(void* to, const void* from, size_t bytes, Stream* stream) {
    ENTER(true);
    return to_host(to, from, bytes, stream);
}

int cuMemcpyDtoDAsync_v2(void* to, const void* from, size_t bytes, Stream* stream) {
    ENTER(true);
    Node node{Node::Kind::Copy};
    node.to = to;
    node.from = from;
    node.bytes = bytes;
    return put_on(stream, std::move(node));
}

int cuMemsetD8Async(void* to, unsigned char value, size_t count, Stream* stream) {
    ENTER(true);
    return put_on(stream, filling(to, value, 1, count));
}

int cuMemsetD16Async(void* to, unsigned short value, size_t count, Stream* stream) {
    ENTER(true);
    return put_on(stream, filling(to, value, 2, count));
}

int cuMemsetD32Async(void* to, unsigned value, size_t count, Stream* stream) {
    ENTER(true);
    return put_on(stream, filling(to, value, 4, count));
}

int cuMemsetD8_v2(void* to, unsigned char value, size_t count) {
    ENTER(true);
    if (const int code = refused()) return code;
    return put_on(nullptr, filling(to, value, 1, count));
}

// ---------------------------------------------------------------------------------------------- modules and launches

int cuModuleLoadData(Module** module, const void* image) {
    ENTER(true);
    if (recording()) return refused();
    return load(module, static_cast<const char*>(image));
}

int cuModuleLoadDataEx(Module** module, const void* image, unsigned, int*, void**) {
    ENTER(true);
    if (recording()) return refused();
    return load(module, static_cast<const char*>(image));
}

int cuModuleUnload(Module* module) {
    ENTER(true);
    if (!modules.erase(module)) return InvalidHandle;
    finish();
    for (Function* function : module->functions) {
        functions.erase(function);
        delete function;
    }
    dlclose(module->library);
    delete module;
    return Success;
}

int cuModuleGetFunction(Function** function, Module* module, const char* name) {
    ENTER(true);
    if (!modules.count(module)) return InvalidHandle;
    for (Function* candidate : module->functions) {
        if (strcmp(candidate->kernel->name, name) == 0) {
            *function = candidate;
            return Success;
        }
    }
    return NotFound;
}

int cuModuleGetGlobal_v2(void**, size_t*, Module*, const char*) {
    ENTER(true);
    return NotFound;
}

int cuFuncSetAttribute(Function* function, int which, int value) {
    ENTER(true);
    if (!functions.count(function)) return InvalidHandle;
    if (which == 8) {
        if (value < 0 || value > attribute(97)) return InvalidValue;
        function->most_shared = uint32_t(value);
    }
    return Success;
}

int cuFuncGetAttribute(int* value, int which, Function* function) {
    ENTER(true);
    if (!functions.count(function)) return InvalidHandle;
    *value = which == 0   ? int(function->kernel->most_threads ? function->kernel->most_threads : 1024)
             : which == 8 ? int(function->most_shared)
                          : 0;
    return Success;
}

int cuFuncSetCacheConfig(Function* function, int) {
    ENTER(true);
    return functions.count(function) ? Success : InvalidHandle;
}

int cuOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, Function* function, int threads, size_t) {
    ENTER(true);
    if (!functions.count(function) || threads <= 0) return InvalidValue;
    *blocks = 2048 / threads;
    return Success;
}

int cuLaunchKernel(Function* function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x, unsigned block_y,
                   unsigned block_z, unsigned shared, Stream* stream, void** arguments, void** extra) {
    ENTER(true);
    if (extra) return InvalidValue;
    return launch(function, {grid_x, grid_y, grid_z}, {block_x, block_y, block_z}, shared, stream, arguments);
}

// The driver is busy while the program's function runs: it may not call back, which CUDA forbids as well.
int cuLaunchHostFunc(Stream* stream, void (*function)(void*), void* data) {
    ENTER(true);
    Node node{Node::Kind::Call};
    node.function_of_host = function;
    node.to = data;
    return put_on(stream, std::move(node));
}

// ---------------------------------------------------------------------------------------------- streams and events

int cuStreamCreate(Stream** stream, unsigned) {
    ENTER(true);
    streams.insert(*stream = new Stream);
    return Success;
}

int cuStreamCreateWithPriority(Stream** stream, unsigned flags, int) {
    ENTER(true);
    (void)flags;
    streams.insert(*stream = new Stream);
    return Success;
}

int cuStreamDestroy_v2(Stream* stream) {
    ENTER(true);
    if (!streams.erase(stream)) return InvalidHandle;
    finish();
    delete stream;
    return Success;
}

int cuStreamSynchronize(Stream* handle) {
    ENTER(true);
    Stream* stream = stream_of(handle);
    if (!stream) return InvalidHandle;
    if (stream->recording) return refused();
    finish();
    return Success;
}

int cuStreamQuery(Stream* handle) {
    ENTER(true);
    Stream* stream = stream_of(handle);
    if (!stream) return InvalidHandle;
    if (stream->recording) return refused();
    finish();
    return Success;
}

int cuStreamWaitEvent(Stream* stream, Event* event, unsigned) {
    ENTER(true);
    return stream_of(stream) && events.count(event) ? Success : InvalidHandle;
}

int cuEventCreate(Event** event, unsigned) {
    ENTER(true);
    events.insert(*event = new Event);
    return Success;
}

int cuEventDestroy_v2(Event* event) {
    ENTER(true);
    if (!events.erase(event)) return InvalidHandle;
    finish();
    delete event;
    return Success;
}

int cuEventRecord(Event* event, Stream* stream) {
    ENTER(true);
    if (!events.count(event)) return InvalidHandle;
    Node node{Node::Kind::Record};
    node.event = event;
    return put_on(stream, std::move(node));
}

int cuEventSynchronize(Event* event) {
    ENTER(true);
    if (!events.count(event)) return InvalidHandle;
    finish();
    return Success;
}

int cuEventQuery(Event* event) {
    ENTER(true);
    if (!events.count(event)) return InvalidHandle;
    if (chance(2)) return NotReady;
    finish();
    return Success;
}

int cuEventElapsedTime_v2(float* milliseconds, Event* start, Event* end) {
    ENTER(true);
    if (!events.count(start) || !events.count(end)) return InvalidHandle;
    finish();
    *milliseconds = float(end->milliseconds - start->milliseconds);
    return Success;
}

// ---------------------------------------------------------------------------------------------- graphs

int cuStreamBeginCapture_v2(Stream* handle, int) {
    ENTER(true);
    if (handle == nullptr) return StreamCaptureUnsupported;
    Stream* stream = stream_of(handle);
    if (!stream) return InvalidHandle;
    if (stream->recording) return StreamCaptureUnmatched;
    stream->recording = new Graph;
    stream->spoiled = false;
    return Success;
}

int cuStreamIsCapturing(Stream* handle, int* status) {
    ENTER(true);
    Stream* stream = stream_of(handle);
    if (!stream) return InvalidHandle;
    *status = !stream->recording ? 0 : stream->spoiled ? 2 : 1;
    return Success;
}

int cuStreamEndCapture(Stream* handle, Graph** graph) {
    ENTER(true);
    Stream* stream = stream_of(handle);
    if (!stream) return InvalidHandle;
    if (!stream->recording) return StreamCaptureUnmatched;
    *graph = stream->recording;
    stream->recording = nullptr;
    if (stream->spoiled) {
        delete *graph;
        *graph = nullptr;
        return StreamCaptureInvalidated;
    }
    graphs.insert(*graph);
    return Success;
}

int cuGraphGetNodes(Graph* graph, void** nodes, size_t* count) {
    ENTER(true);
    if (!graphs.count(graph)) return InvalidHandle;
    for (size_t i = 0; nodes && i < *count; ++i) nodes[i] = i < graph->nodes.size() ? &graph->nodes[i] : nullptr;
    *count = graph->nodes.size();
    return Success;
}

int cuGraphInstantiateWithFlags(Graph** made, Graph* graph, unsigned long long) {
    ENTER(true);
    if (!graphs.count(graph)) return InvalidHandle;
    launchable.insert(*made = new Graph(*graph));
    return Success;
}

int cuGraphUpload(Graph* graph, Stream* stream) {
    ENTER(true);
    return launchable.count(graph) && stream_of(stream) ? Success : InvalidHandle;
}

int cuGraphLaunch(Graph* graph, Stream* handle) {
    ENTER(true);
    Stream* stream = stream_of(handle);
    if (!launchable.count(graph) || !stream) return InvalidHandle;
    for (const Node& node : graph->nodes) put(*stream, node);
    return Success;
}

int cuGraphExecDestroy(Graph* graph) {
    ENTER(true);
    if (!launchable.erase(graph)) return InvalidHandle;
    finish();
    delete graph;
    return Success;
}

int cuGraphDestroy(Graph* graph) {
    ENTER(true);
    if (!graphs.erase(graph)) return InvalidHandle;
    delete graph;
    return Success;
}

}  // extern "C"
