// Programs against the stand-in: right sequences of calls, which must pass without a word, and planted mistakes, which must be
// found. One case runs in a process: `cases NAME`. `cargo xtask emulate --driver --self-test` knows what each has to say.

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include "emulator/driver/cuda.h"

namespace {

// Ends the program unless a call returns what it should.
#define EXPECT(code, call) expect(code, call, #call, __LINE__)
#define OK(call) EXPECT(CUDA_SUCCESS, call)

void expect(int code, int got, const char* call, int line) {
    if (got != code) {
        std::fprintf(stderr, "line %d: %s returned %d, not %d\n", line, call, got, code);
        std::exit(1);
    }
}

void require(bool condition, const char* what) {
    if (!condition) {
        std::fprintf(stderr, "not so: %s\n", what);
        std::exit(1);
    }
}

// ---- What every case starts with

CUstream stream = nullptr;

void start() {
    CUcontext context;
    OK(cuInit(0));
    OK(cuDevicePrimaryCtxRetain(&context, 0));
    OK(cuCtxSetCurrent(context));
    OK(cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING));
}

CUdeviceptr allocate(size_t bytes) {
    CUdeviceptr memory;
    OK(cuMemAllocAsync(&memory, bytes, stream));
    OK(cuMemsetD8Async(memory, 0, bytes, stream));
    return memory;
}

char* page_locked(size_t bytes) {
    void* memory;
    OK(cuMemHostAlloc(&memory, bytes, 0));
    std::memset(memory, 0, bytes);
    return static_cast<char*>(memory);
}

CUevent event(unsigned flags = CU_EVENT_DISABLE_TIMING) {
    CUevent made;
    OK(cuEventCreate(&made, flags));
    return made;
}

// ---- A kernel of the emulator's own tests: each thread writes 16 bytes that say where it is

constexpr unsigned THREADS = 256;
constexpr unsigned BLOCKS = 3;
constexpr size_t WRITTEN = BLOCKS * THREADS * 16;
constexpr const char* PTX = ".version 8.4\n.target sm_75\n.visible .entry places(\n.param .u64 table)\n{ ret; }\n";

CUfunction kernel() {
    CUmodule module;
    CUfunction function;
    OK(cuModuleLoadData(&module, PTX));
    OK(cuModuleGetFunction(&function, module, "places"));
    return function;
}

// The kernel's table on the device: where it reads, where it writes, and a count.
CUdeviceptr table(CUdeviceptr out) {
    const uint64_t words[3] = {0, out, 0};
    const CUdeviceptr memory = allocate(sizeof words);
    OK(cuMemcpyHtoDAsync_v2(memory, words, sizeof words, stream));
    return memory;
}

int launch(CUfunction function, CUdeviceptr argument, unsigned blocks = BLOCKS, unsigned threads = THREADS) {
    void* arguments[] = {&argument};
    return cuLaunchKernel(function, blocks, 1, 1, threads, 1, 1, 0, stream, arguments, nullptr);
}

// The number of the block that wrote last, as the last thread has it.
unsigned last_block(CUdeviceptr out) {
    unsigned words[4];
    OK(cuMemcpyDtoHAsync_v2(words, out + WRITTEN - sizeof words, sizeof words, stream));
    return words[1];
}

// ---- Right

// Nothing has been done until somebody waits; a question is one step of the device.
void deferred_work() {
    start();
    char* from = page_locked(4);
    char* to = page_locked(4);
    const CUdeviceptr memory = allocate(4);
    const CUevent done = event();
    std::memcpy(from, "abc", 4);
    OK(cuMemcpyHtoDAsync_v2(memory, from, 4, stream));
    OK(cuMemcpyDtoHAsync_v2(to, memory, 4, stream));
    OK(cuEventRecord(done, stream));
    require(to[0] == 0, "a copy waits for its turn");
    int asked = 0;
    while (cuEventQuery(done) == CUDA_ERROR_NOT_READY) {
        asked += 1;
    }
    require(asked == 3 && std::strcmp(to, "abc") == 0, "memset, two copies, then the event");
    OK(cuEventSynchronize(done));
    OK(cuMemFreeHost(from));
    OK(cuMemFreeHost(to));
    OK(cuMemFreeAsync(memory, stream));
    OK(cuStreamSynchronize(stream));
}

// Memory of the host that is not page-locked can be used again when the call returns.
void pageable_copies() {
    start();
    std::vector<char> host(1000, 'a');
    const CUdeviceptr memory = allocate(host.size());
    OK(cuMemcpyHtoDAsync_v2(memory, host.data(), host.size(), stream));
    std::fill(host.begin(), host.end(), 'b');
    OK(cuMemcpyDtoHAsync_v2(host.data(), memory, host.size(), stream));
    require(host[0] == 'a' && host[999] == 'a', "the copy held what the host had");
}

void kernels_run() {
    start();
    const CUdeviceptr out = allocate(WRITTEN);
    OK(launch(kernel(), table(out)));
    require(last_block(out) == BLOCKS - 1, "the kernel has written");
}

// Another stream goes on behind an event; without it, it would see what was there before.
void streams_wait() {
    start();
    CUstream other;
    OK(cuStreamCreate(&other, CU_STREAM_NON_BLOCKING));
    const CUdeviceptr memory = allocate(4);
    OK(cuStreamSynchronize(stream));
    char* word = page_locked(4);
    OK(cuMemsetD8Async(memory, 'x', 4, stream));
    OK(cuMemcpyDtoHAsync_v2(word, memory, 4, other));
    OK(cuStreamSynchronize(other));
    require(word[0] == 0, "streams are on their own");
    const CUevent written = event();
    OK(cuEventRecord(written, stream));
    OK(cuStreamWaitEvent(other, written, 0));
    OK(cuMemcpyDtoHAsync_v2(word, memory, 4, other));
    OK(cuStreamSynchronize(other));
    require(word[0] == 'x', "an event orders streams");
}

// The legacy stream and a blocking one wait for each other; each thread has a stream of its own.
void default_streams() {
    start();
    const CUdeviceptr memory = allocate(4);
    OK(cuStreamSynchronize(stream));
    OK(cuMemsetD8Async(memory, 'p', 4, CU_STREAM_PER_THREAD));
    char word[4] = "";
    OK(cuMemcpyDtoH_v2(word, memory, 4));
    require(word[0] == 'p', "the legacy stream waits for that of the thread");
    OK(cuMemsetD8Async(memory, 'q', 4, CU_STREAM_PER_THREAD));
    char* seen = page_locked(4);
    std::thread([&] {
        CUcontext context;
        OK(cuCtxGetCurrent(&context));
        require(!context, "a new thread has no context");
        EXPECT(CUDA_ERROR_INVALID_CONTEXT, cuMemsetD8Async(memory, 'r', 4, CU_STREAM_PER_THREAD));
        OK(cuDevicePrimaryCtxRetain(&context, 0));
        OK(cuCtxSetCurrent(context));
        OK(cuMemcpyDtoHAsync_v2(seen, memory, 4, CU_STREAM_PER_THREAD));
        OK(cuStreamSynchronize(CU_STREAM_PER_THREAD));
    }).join();
    require(seen[0] == 'p', "another thread's stream is another one");
}

// A step captured once and launched twice, between steps that are not captured.
void graphs_replay() {
    start();
    const CUdeviceptr out = allocate(WRITTEN);
    const CUdeviceptr argument = table(out);
    const CUfunction function = kernel();
    CUgraph graph;
    CUgraphExec executable;
    int status;
    OK(cuStreamBeginCapture_v2(stream, CAPTURE_GLOBAL));
    OK(cuStreamIsCapturing(stream, &status));
    require(status == 1, "it is being captured");
    OK(launch(function, argument));
    OK(cuStreamEndCapture(stream, &graph));
    OK(cuGraphInstantiateWithFlags(&executable, graph, 0));
    OK(cuGraphDestroy(graph));
    require(last_block(out) == 0, "a capture runs nothing");
    for (int replay = 0; replay < 2; ++replay) {
        OK(cuMemsetD8Async(out, 0, WRITTEN, stream));
        OK(cuGraphLaunch(executable, stream));
        require(last_block(out) == BLOCKS - 1, "a launch of the graph runs the kernel");
    }
    OK(cuGraphLaunch(executable, stream));
    OK(cuGraphExecDestroy(executable));
    OK(cuStreamSynchronize(stream));
}

// A capture goes over to another stream and comes back by events recorded in it.
void captures_fork_and_join() {
    start();
    CUstream other;
    OK(cuStreamCreate(&other, CU_STREAM_NON_BLOCKING));
    const CUdeviceptr memory = allocate(4);
    const CUevent fork = event(), join = event();
    CUgraph graph;
    OK(cuStreamBeginCapture_v2(stream, CAPTURE_THREAD_LOCAL));
    OK(cuEventRecord(fork, stream));
    OK(cuStreamWaitEvent(other, fork, 0));
    OK(cuMemsetD8Async(memory, 1, 4, other));
    OK(cuEventRecord(join, other));
    OK(cuStreamWaitEvent(stream, join, 0));
    OK(cuStreamEndCapture(stream, &graph));

    OK(cuStreamBeginCapture_v2(stream, CAPTURE_THREAD_LOCAL));
    OK(cuEventRecord(fork, stream));
    OK(cuStreamWaitEvent(other, fork, 0));
    OK(cuMemsetD8Async(memory, 2, 4, other));
    EXPECT(CUDA_ERROR_STREAM_CAPTURE_UNJOINED, cuStreamEndCapture(stream, &graph));
    OK(cuStreamSynchronize(other));
}

// Calls that a capture forbids end it; afterwards the stream is as good as before.
void captures_end_by_what_is_forbidden() {
    start();
    CUgraph graph;
    const CUdeviceptr memory = allocate(4);
    const CUevent outside = event(), inside = event(), unused = event();
    OK(cuEventRecord(outside, stream));
    char pageable[4] = "";
    CUdeviceptr other;
    const auto ends_it = [&](auto code, auto call) {
        OK(cuStreamBeginCapture_v2(stream, CAPTURE_GLOBAL));
        EXPECT(code, call());
        int status;
        OK(cuStreamIsCapturing(stream, &status));
        require(status == 2, "the capture is invalid");
        EXPECT(CUDA_ERROR_STREAM_CAPTURE_INVALIDATED, cuMemsetD8Async(memory, 1, 4, stream));
        EXPECT(CUDA_ERROR_STREAM_CAPTURE_INVALIDATED, cuStreamEndCapture(stream, &graph));
        require(!graph, "no graph comes of it");
        OK(cuMemsetD8Async(memory, 1, 4, stream));
        OK(cuStreamSynchronize(stream));
    };
    ends_it(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, [&] { return cuStreamSynchronize(stream); });
    ends_it(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, [&] { return cuCtxSynchronize(); });
    ends_it(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, [&] { return cuMemAlloc_v2(&other, 4); });
    ends_it(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, [&] { return cuEventQuery(outside); });
    ends_it(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, [&] { return cuMemcpyHtoDAsync_v2(memory, pageable, 4, stream); });
    ends_it(CUDA_ERROR_STREAM_CAPTURE_ISOLATION, [&] { return cuStreamWaitEvent(stream, outside, 0); });
    ends_it(CUDA_ERROR_INVALID_VALUE, [&] { return cuMemFreeAsync(memory, stream); });
    ends_it(CUDA_ERROR_CAPTURED_EVENT, [&] {
        OK(cuEventRecord(inside, stream));
        return cuEventQuery(inside);
    });
    EXPECT(CUDA_ERROR_CAPTURED_EVENT, cuEventSynchronize(inside));
    OK(cuEventRecord(inside, stream));
    OK(cuEventSynchronize(inside));
    OK(cuEventSynchronize(unused));

    CUstream short_lived;
    OK(cuStreamCreate(&short_lived, 0));
    OK(cuStreamBeginCapture_v2(short_lived, CAPTURE_GLOBAL));
    OK(cuStreamDestroy_v2(short_lived));
    OK(cuCtxSynchronize());

    EXPECT(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, cuStreamBeginCapture_v2(nullptr, CAPTURE_RELAXED));
    EXPECT(CUDA_ERROR_ILLEGAL_STATE, cuStreamEndCapture(stream, &graph));
    OK(cuStreamBeginCapture_v2(stream, CAPTURE_RELAXED));
    EXPECT(CUDA_ERROR_ILLEGAL_STATE, cuStreamBeginCapture_v2(stream, CAPTURE_RELAXED));
    OK(cuMemAlloc_v2(&other, 4));
    OK(cuStreamEndCapture(stream, &graph));

    OK(cuStreamBeginCapture_v2(CU_STREAM_PER_THREAD, CAPTURE_RELAXED));
    EXPECT(CUDA_ERROR_STREAM_CAPTURE_IMPLICIT, cuMemcpyHtoD_v2(memory, pageable, 4));
    EXPECT(CUDA_ERROR_STREAM_CAPTURE_INVALIDATED, cuStreamEndCapture(CU_STREAM_PER_THREAD, &graph));

    OK(cuStreamBeginCapture_v2(stream, CAPTURE_GLOBAL));
    std::thread([&] {
        CUcontext context;
        OK(cuDevicePrimaryCtxRetain(&context, 0));
        OK(cuCtxSetCurrent(context));
        EXPECT(CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD, cuStreamEndCapture(stream, &graph));
    }).join();
    OK(cuStreamEndCapture(stream, &graph));
}

// Calls with what is not there are refused, and change nothing.
void bad_arguments_are_refused() {
    CUdeviceptr memory;
    EXPECT(CUDA_ERROR_NOT_INITIALIZED, cuMemAlloc_v2(&memory, 4));
    OK(cuInit(0));
    EXPECT(CUDA_ERROR_INVALID_CONTEXT, cuMemAlloc_v2(&memory, 4));
    start();
    CUdevice device;
    EXPECT(CUDA_ERROR_INVALID_DEVICE, cuDeviceGet(&device, 1));
    char host[8] = "";
    EXPECT(CUDA_ERROR_INVALID_VALUE, cuMemAlloc_v2(&memory, 0));
    OK(cuMemAlloc_v2(&memory, 4));
    EXPECT(CUDA_ERROR_INVALID_VALUE, cuMemcpyHtoDAsync_v2(memory, host, 5, stream));
    EXPECT(CUDA_ERROR_INVALID_VALUE, cuMemcpyHtoDAsync_v2(memory + 1, host, 4, stream));
    EXPECT(CUDA_ERROR_INVALID_VALUE, cuMemcpyDtoHAsync_v2(host, memory, 5, stream));
    EXPECT(CUDA_ERROR_INVALID_VALUE, cuMemcpyDtoDAsync_v2(memory, memory + 1, 2, stream));
    EXPECT(CUDA_ERROR_INVALID_VALUE, cuMemsetD8Async(memory, 0, 5, stream));
    EXPECT(CUDA_ERROR_INVALID_VALUE, cuMemFreeAsync(memory + 1, stream));
    OK(cuMemFreeAsync(memory, stream));
    EXPECT(CUDA_ERROR_INVALID_VALUE, cuMemFreeAsync(memory, stream));
    OK(cuStreamSynchronize(stream));
    EXPECT(CUDA_ERROR_INVALID_VALUE, cuMemFreeAsync(memory, stream));
    EXPECT(CUDA_ERROR_INVALID_VALUE, cuMemFreeHost(host));

    const CUevent ended = event();
    OK(cuEventDestroy_v2(ended));
    EXPECT(CUDA_ERROR_INVALID_HANDLE, cuEventRecord(ended, stream));
    CUstream destroyed;
    OK(cuStreamCreate(&destroyed, 0));
    OK(cuStreamDestroy_v2(destroyed));
    EXPECT(CUDA_ERROR_INVALID_HANDLE, cuStreamSynchronize(destroyed));
    float time;
    const CUevent untimed = event(), timed = event(0);
    OK(cuEventRecord(timed, stream));
    EXPECT(CUDA_ERROR_INVALID_HANDLE, cuEventElapsedTime(&time, timed, untimed));
    EXPECT(CUDA_ERROR_NOT_READY, cuEventElapsedTime(&time, timed, timed));

    const CUdeviceptr argument = table(allocate(WRITTEN));
    const CUfunction function = kernel();
    EXPECT(CUDA_ERROR_INVALID_VALUE, launch(function, argument, 0));
    EXPECT(CUDA_ERROR_INVALID_VALUE, launch(function, argument, 1, 64));
    EXPECT(CUDA_ERROR_INVALID_VALUE, cuLaunchKernel(function, 1, 1, 1, THREADS, 1, 1, 0, stream, nullptr, nullptr));
    CUmodule module;
    CUfunction missing;
    OK(cuModuleLoadData(&module, PTX));
    EXPECT(CUDA_ERROR_NOT_FOUND, cuModuleGetFunction(&missing, module, "barriers"));
    OK(cuModuleUnload(module));
    EXPECT(CUDA_ERROR_INVALID_HANDLE, cuModuleGetFunction(&missing, module, "places"));
    EXPECT(CUDA_ERROR_INVALID_IMAGE, cuModuleLoadData(&module, "no PTX"));
    EXPECT(CUDA_ERROR_NO_BINARY_FOR_GPU, cuModuleLoadData(&module, ".version 8.7\n.target sm_100\n"));
}

// Builds an image as NVIDIA's tools do.
struct Image {
    std::vector<char> bytes;

    template <class T> void put(size_t at, T value) {
        if (bytes.size() < at + sizeof value) {
            bytes.resize(at + sizeof value);
        }
        std::memcpy(&bytes[at], &value, sizeof value);
    }
    size_t append(const void* from, size_t count) {
        const char* start = static_cast<const char*>(from);
        bytes.insert(bytes.end(), start, start + count);
        return bytes.size() - count;
    }
};

// A cubin with one kernel, or rather the sections that name it.
Image cubin(unsigned target, const char* name) {
    Image elf;
    elf.put<uint32_t>(0, 0x464c457f);
    elf.put<uint8_t>(8, 8);
    elf.put<uint32_t>(48, 0x06000004 | target << 8);
    elf.put<uint16_t>(58, 64); // bytes of a section
    elf.put<uint16_t>(60, 2);  // how many
    elf.put<uint16_t>(62, 0);  // which has the names
    const std::string names = std::string("\0.names\0", 8) + ".text." + name;
    const size_t sections = 64;
    elf.put<uint64_t>(40, sections);
    elf.put<uint64_t>(sections + 120, 0);
    elf.put<uint32_t>(sections, 1);
    elf.put<uint64_t>(sections + 24, sections + 128);
    elf.put<uint32_t>(sections + 64, 8);
    elf.append(names.c_str(), names.size() + 1);
    return elf;
}

Image fat_binary(uint16_t kind, unsigned target, const Image& part, bool compressed, const std::string& name = "") {
    Image fat;
    const size_t header = 64 + name.size();
    fat.put<uint32_t>(0, 0xba55ed50);
    fat.put<uint16_t>(4, 1);
    fat.put<uint16_t>(6, 16);
    fat.put<uint64_t>(8, header + part.bytes.size());
    fat.put<uint16_t>(16, kind);
    fat.put<uint32_t>(20, uint32_t(header));
    fat.put<uint64_t>(24, part.bytes.size());
    fat.put<uint32_t>(44, target);
    fat.put<uint32_t>(48, 64);
    fat.put<uint32_t>(52, uint32_t(name.size()));
    fat.put<uint64_t>(72, compressed ? 1000 : 0);
    fat.append(name.data(), name.size());
    fat.append(part.bytes.data(), part.bytes.size());
    return fat;
}

// PTX, machine code, and both in one image: kernels are looked for where names can be seen, on a device of 9.0.
void images_are_read() {
    start();
    const auto has = [](int code, const Image& image, const char* name) {
        CUmodule module;
        CUfunction function;
        OK(cuModuleLoadData(&module, image.bytes.data()));
        EXPECT(code, cuModuleGetFunction(&function, module, name));
    };
    CUmodule module;
    has(CUDA_SUCCESS, cubin(90, "places"), "places");
    has(CUDA_ERROR_NOT_FOUND, cubin(90, "barriers"), "places");
    for (const unsigned target : {75u, 80u, 100u}) {
        EXPECT(CUDA_ERROR_NO_BINARY_FOR_GPU, cuModuleLoadData(&module, cubin(target, "places").bytes.data()));
    }
    has(CUDA_SUCCESS, fat_binary(2, 90, cubin(90, "places"), false), "places");
    has(CUDA_ERROR_NOT_FOUND, fat_binary(2, 90, cubin(90, "barriers"), false), "places");
    has(CUDA_SUCCESS, fat_binary(2, 90, cubin(90, "unseen"), true), "places");
    has(CUDA_SUCCESS, fat_binary(2, 90, cubin(90, "unseen"), true, "places"), "places");
    has(CUDA_ERROR_NOT_FOUND, fat_binary(2, 90, cubin(90, "unseen"), true, "barriers"), "places");
    Image text;
    text.append(PTX, std::strlen(PTX));
    has(CUDA_SUCCESS, fat_binary(1, 75, text, false), "places");
    has(CUDA_ERROR_NOT_FOUND, fat_binary(1, 75, text, false), "barriers");
    EXPECT(CUDA_ERROR_NO_BINARY_FOR_GPU,
           cuModuleLoadData(&module, fat_binary(2, 80, cubin(80, "places"), false).bytes.data()));
}

void pools_have_attributes() {
    start();
    CUmemoryPool pool;
    OK(cuDeviceGetDefaultMemPool(&pool, 0));
    uint64_t number = 1;
    OK(cuMemPoolGetAttribute(pool, POOL_RELEASE_THRESHOLD, &number));
    require(number == 0, "memory goes back at the next wait");
    const auto reserved = [&] {
        OK(cuMemPoolGetAttribute(pool, POOL_RESERVED_CURRENT, &number));
        return number;
    };
    for (const uint64_t threshold : {uint64_t(0), UINT64_MAX}) {
        OK(cuMemPoolSetAttribute(pool, POOL_RELEASE_THRESHOLD, &(number = threshold)));
        OK(cuMemFreeAsync(allocate(1000), stream));
        require(reserved() == 1000, "the pool has it");
        OK(cuStreamSynchronize(stream));
        require(reserved() == (threshold == 0 ? 0 : 1000), "it keeps as much as it may");
    }
    OK(cuMemPoolTrimTo(pool, 0));
    require(reserved() == 0, "until it is told to give it back");
    int reuse = 0;
    OK(cuMemPoolSetAttribute(pool, POOL_REUSE_ALLOW_OPPORTUNISTIC, &reuse));
    OK(cuMemPoolGetAttribute(pool, POOL_REUSE_ALLOW_OPPORTUNISTIC, &(reuse = 1)));
    require(reuse == 0, "it was set");
    EXPECT(CUDA_ERROR_INVALID_VALUE, cuMemPoolSetAttribute(pool, POOL_USED_CURRENT, &number));
    EXPECT(CUDA_ERROR_INVALID_VALUE, cuMemPoolGetAttribute(pool, 9, &number));
}

// ---- Steps of an optimizer as the host makes them: two launches, and the copy of an outcome to page-locked memory

struct Step {
    CUdeviceptr out = allocate(WRITTEN);
    CUdeviceptr argument = table(out);
    CUfunction function = kernel();
    char* outcome = page_locked(16);
    CUevent written = event(), read = event(), reported = event();

    void launches() {
        OK(launch(function, argument));
        OK(launch(function, argument));
    }
    void report() {
        OK(cuMemcpyDtoHAsync_v2(outcome, out, 16, stream));
        OK(cuEventRecord(reported, stream));
    }
};

// A step in a capture: plain launches.
void captured_step() {
    start();
    Step step;
    CUgraph graph;
    step.launches();
    step.report();
    OK(cuEventSynchronize(step.reported));
    OK(cuStreamBeginCapture_v2(stream, CAPTURE_RELAXED));
    step.launches();
    OK(cuStreamEndCapture(stream, &graph));
    OK(cuEventQuery(step.reported));
}

// Planted: the memory's own event, recorded before the capture, is waited for in it.
void captured_step_waits_for_an_event_from_outside() {
    start();
    Step step;
    CUgraph graph;
    OK(cuEventRecord(step.written, stream));
    OK(cuStreamBeginCapture_v2(stream, CAPTURE_RELAXED));
    OK(cuStreamWaitEvent(stream, step.written, 0));
    step.launches();
    OK(cuStreamEndCapture(stream, &graph));
}

// Planted: the step records the event of its report into the capture, and the next step asks for it.
void captured_step_records_an_event_that_is_asked_for() {
    start();
    Step step;
    CUgraph graph;
    OK(cuStreamBeginCapture_v2(stream, CAPTURE_RELAXED));
    step.launches();
    step.report();
    OK(cuStreamEndCapture(stream, &graph));
    OK(cuEventQuery(step.reported));
}

// Runs steps and holds what they call against what a step on one stream needs.
template <class Call> void steady_state(Call call) {
    constexpr uint64_t STEPS = 5;
    Step step;
    call(step);
    const auto count = [](const char* name, uint64_t before) { return tpgm_driver_calls(name) - before; };
    const uint64_t waits = tpgm_driver_calls("cuStreamWaitEvent"), records = tpgm_driver_calls("cuEventRecord");
    const uint64_t launches = tpgm_driver_calls("cuLaunchKernel");
    for (uint64_t i = 0; i < STEPS; ++i) {
        call(step);
    }
    require(count("cuLaunchKernel", launches) == 2 * STEPS, "two launches a step");
    require(count("cuStreamWaitEvent", waits) == 0, "a step on one stream waits for no event");
    require(count("cuEventRecord", records) == STEPS, "a step records the event of its report alone");
}

void steps_on_one_stream() {
    start();
    steady_state([](Step& step) {
        step.launches();
        step.report();
    });
}

// Planted: every launch waits for the events of the memory it uses and records them anew, though all is on one stream.
void steps_wait_and_record() {
    start();
    steady_state([](Step& step) {
        OK(cuStreamWaitEvent(stream, step.written, 0));
        OK(cuStreamWaitEvent(stream, step.read, 0));
        step.launches();
        OK(cuEventRecord(step.written, stream));
        OK(cuEventRecord(step.read, stream));
        step.report();
    });
}

void staging_outlives_its_copy() {
    start();
    Step step;
    step.launches();
    step.report();
    OK(cuEventSynchronize(step.reported));
    OK(cuMemFreeHost(step.outcome));
}

// Planted: an optimizer is dropped right behind its step.
void staging_freed_under_a_copy() {
    start();
    Step step;
    step.launches();
    step.report();
    OK(cuMemFreeHost(step.outcome));
}

// Planted: the next call's table is written into memory that the last call's copy has not left.
void staging_rewritten_under_a_copy() {
    start();
    const CUdeviceptr memory = allocate(16);
    char* staging = page_locked(16);
    OK(cuMemcpyHtoDAsync_v2(memory, staging, 16, stream));
    staging[3] = 1;
    OK(cuStreamSynchronize(stream));
}

// Planted: a graph copies into page-locked memory that has been freed.
void graph_outlives_its_memory() {
    start();
    Step step;
    CUgraph graph;
    CUgraphExec executable;
    OK(cuStreamBeginCapture_v2(stream, CAPTURE_RELAXED));
    OK(cuMemcpyDtoHAsync_v2(step.outcome, step.out, 16, stream));
    OK(cuStreamEndCapture(stream, &graph));
    OK(cuGraphInstantiateWithFlags(&executable, graph, 0));
    OK(cuMemFreeHost(step.outcome));
    cuGraphLaunch(executable, stream);
}

// Planted: a launch after the call that frees its table.
void launch_after_free() {
    start();
    const CUdeviceptr argument = table(allocate(WRITTEN));
    const CUfunction function = kernel();
    OK(cuMemFreeAsync(argument, stream));
    launch(function, argument);
}

// Planted: an operand is freed before the kernel runs. The context is of no use after that.
void kernel_reads_freed_memory() {
    start();
    const CUdeviceptr out = allocate(WRITTEN);
    const CUdeviceptr argument = table(out);
    const CUfunction function = kernel();
    OK(cuMemFreeAsync(out, stream));
    OK(launch(function, argument));
    EXPECT(CUDA_ERROR_ILLEGAL_ADDRESS, cuStreamSynchronize(stream));
    CUdeviceptr memory;
    EXPECT(CUDA_ERROR_ILLEGAL_ADDRESS, cuMemAlloc_v2(&memory, 4));
    std::exit(1);
}

// Planted: an operand is one block's part too short.
void kernel_leaves_its_memory() {
    start();
    OK(launch(kernel(), table(allocate(WRITTEN - THREADS * 16))));
    EXPECT(CUDA_ERROR_ILLEGAL_ADDRESS, cuStreamSynchronize(stream));
    std::exit(1);
}

// Planted: an operand is 16 bytes too short, which the device's alignment would hide.
void kernel_leaves_its_memory_by_little() {
    start();
    const CUdeviceptr out = allocate(WRITTEN - 16);
    OK(launch(kernel(), table(out)));
    OK(cuMemFreeAsync(out, stream));
    OK(cuStreamSynchronize(stream));
}

struct Case {
    const char* name;
    void (*run)();
};

#define CASE(name) {#name, name}
constexpr Case CASES[] = {
    CASE(deferred_work),
    CASE(pageable_copies),
    CASE(kernels_run),
    CASE(streams_wait),
    CASE(default_streams),
    CASE(graphs_replay),
    CASE(captures_fork_and_join),
    CASE(captures_end_by_what_is_forbidden),
    CASE(bad_arguments_are_refused),
    CASE(images_are_read),
    CASE(pools_have_attributes),
    CASE(captured_step),
    CASE(captured_step_waits_for_an_event_from_outside),
    CASE(captured_step_records_an_event_that_is_asked_for),
    CASE(steps_on_one_stream),
    CASE(steps_wait_and_record),
    CASE(staging_outlives_its_copy),
    CASE(staging_freed_under_a_copy),
    CASE(staging_rewritten_under_a_copy),
    CASE(graph_outlives_its_memory),
    CASE(launch_after_free),
    CASE(kernel_reads_freed_memory),
    CASE(kernel_leaves_its_memory),
    CASE(kernel_leaves_its_memory_by_little),
};

} // namespace

int main(int count, char** words) {
    for (const Case& one : CASES) {
        if (count == 2 && std::strcmp(words[1], one.name) == 0) {
            one.run();
            return 0;
        }
    }
    std::fprintf(stderr, "usage: cases NAME\n");
    return 2;
}
