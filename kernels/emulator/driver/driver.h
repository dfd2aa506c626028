// What the parts of the stand-in share. One mutex guards all of it; it is let go of while a kernel runs.
#pragma once

#include <chrono>
#include <condition_variable>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "cuda.h"

namespace driver {

using Lock = std::unique_lock<std::mutex>;

// How a call or a piece of work ends that does not go well. Without a reason nothing is printed.
struct Failure {
    CUresult code;
    std::string reason;
};

[[noreturn]] inline void fail(CUresult code, const std::string& reason) { throw Failure{code, reason}; }

struct Range {
    uint64_t start = 0;
    size_t bytes = 0;

    uint64_t end() const { return start + bytes; }
    bool overlaps(const Range& other) const { return start < other.end() && other.start < end(); }
    bool holds(const Range& other) const { return start <= other.start && other.end() <= end(); }
};

// Something for the device to do.
struct Work {
    std::string what;
    // Device memory that has to be alive.
    std::vector<Range> device;
    // Page-locked memory that is read, and that is written.
    Range source;
    Range target;
    // What `source` held when the work was queued.
    std::vector<char> expected;
    // May throw a `Failure`, after which the context is of no use, as on a device.
    std::function<void(Lock&)> run;
};

struct Stream;

// A capture, and the graph that comes of it.
struct Capture {
    std::shared_ptr<Stream> origin;
    CUstreamCaptureMode mode;
    std::thread::id thread;
    bool active = true;
    bool invalid = false;
    std::vector<Work> nodes;
    // All streams that take part, and those with work that nothing waits for yet.
    std::vector<std::shared_ptr<Stream>> streams;
    std::set<Stream*> unjoined;
};

struct Stream {
    // It waits for the legacy stream, and that for it.
    bool blocking = true;
    // Work whose turn has not come, and the one that runs, which is the first.
    std::deque<Work> queue;
    uint64_t queued = 0;
    uint64_t done = 0;
    bool running = false;
    std::shared_ptr<Capture> capture;
};

// Where an event was recorded last.
struct Record {
    std::shared_ptr<Stream> stream;
    uint64_t position = 0;
    std::shared_ptr<Capture> capture;
    std::chrono::steady_clock::time_point time;

    bool reached() const { return stream->done >= position; }
};

struct Event {
    bool timed = true;
    std::shared_ptr<Record> record;
};

struct Allocation {
    size_t bytes = 0;
    // From a pool, which counts it.
    bool pooled = false;
    // A call has freed it, though its turn may not have come.
    bool free_queued = false;
};

struct Module {
    // Names that the image is seen to have; empty if they cannot be seen.
    bool names_visible = false;
    std::set<std::string> names;
};

struct Function {
    CUmodule module = nullptr;
    std::string name;
};

struct Pool {
    int reuse[3] = {1, 1, 1};
    uint64_t threshold = 0;
    uint64_t reserved = 0, reserved_high = 0;
    uint64_t used = 0, used_high = 0;
};

// Handles that are never given out twice, so that old ones are known to be old.
template <class T> class Table {
  public:
    void* add(T value, uint64_t& next) {
        void* handle = reinterpret_cast<void*>(next += 16);
        entries[handle] = std::move(value);
        return handle;
    }
    T& get(void* handle, const char* kind) {
        const auto found = entries.find(handle);
        if (found == entries.end()) {
            fail(CUDA_ERROR_INVALID_HANDLE,
                 std::string("there is no such ") + kind + ": it was destroyed, or never made");
        }
        return found->second;
    }
    void remove(void* handle, const char* kind) {
        get(handle, kind);
        entries.erase(handle);
    }
    bool has(void* handle) const { return entries.count(handle) > 0; }
    void clear() { entries.clear(); }
    std::map<void*, T>& all() { return entries; }

  private:
    std::map<void*, T> entries;
};

// The process's one device and its primary context.
struct State {
    static State& get();

    std::mutex mutex;
    std::condition_variable progress;

    bool initialized = false;
    unsigned retained = 0;
    // What went wrong on the device: every later call returns it.
    CUresult failed = CUDA_SUCCESS;
    uint64_t findings = 0;
    std::map<std::string, uint64_t> calls;

    uint64_t next_handle = 0x10000;
    std::shared_ptr<Stream> legacy = std::make_shared<Stream>();
    std::map<uint64_t, std::shared_ptr<Stream>> per_thread;
    Table<std::shared_ptr<Stream>> streams;
    // Destroyed with work left.
    std::vector<std::shared_ptr<Stream>> retired;
    Table<std::shared_ptr<Event>> events;
    Table<std::shared_ptr<Capture>> graphs;
    Table<std::shared_ptr<Capture>> executables;
    Table<Module> modules;
    Table<Function> functions;
    std::vector<std::shared_ptr<Capture>> captures;

    std::map<uint64_t, Allocation> device;
    // Freed: how large it was.
    std::map<uint64_t, size_t> freed;
    std::map<uint64_t, size_t> page_locked;
    Pool pool;
};

// ---- calls.cpp: what every function of the driver begins and ends with

enum class Needs {
    Nothing,
    // `cuInit`
    Init,
    // A context in which nothing went wrong
    Device,
    // That, and the thread has made it current
    Context,
};

void begin(const char* function, Needs needs);
void report(const std::string& function, const Failure& failure);
// Prints a mistake that a driver would not tell of; the process will not end with success.
void found(const std::string& function, const std::string& what);

template <class Body> int call(const char* function, Needs needs, Body body) {
    Lock lock(State::get().mutex);
    try {
        begin(function, needs);
        body(lock);
        return CUDA_SUCCESS;
    } catch (const Failure& failure) {
        report(function, failure);
        return failure.code;
    } catch (const std::bad_alloc&) {
        report(function, {CUDA_ERROR_OUT_OF_MEMORY, "the host has no memory left"});
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
}

extern void* const CONTEXT;
void use_device(CUdevice device);

// ---- streams.cpp

std::shared_ptr<Stream> stream_of(CUstream handle);
std::vector<std::shared_ptr<Stream>> all_streams();
// Queues work, or adds it to the graph that the stream captures.
void push(const std::shared_ptr<Stream>& stream, Work work);
// Runs a stream's work up to a position.
void drain(Lock& lock, Stream& stream, uint64_t position);
inline void drain(Lock& lock, Stream& stream) { drain(lock, stream, stream.queued); }
void drain_all(Lock& lock);

// ---- captures.cpp

// Ends what a capture is good for.
[[noreturn]] void spoil(Capture& capture, CUresult code, const std::string& reason);
// For calls that a capture forbids unless it is relaxed.
void refuse_in_captures(const char* function);
// For calls that wait for the whole device.
void refuse_to_wait_for_captures();
void add_node(Stream& stream, Work work);
// Takes the streams out of a capture.
void end_capture(const std::shared_ptr<Capture>& capture);

// ---- memory.cpp

// That device memory has these bytes.
void check_device(const Range& range);
// That these bytes, which had been there, have not been freed on the device.
void check_alive(const Range& range);
// True if it is page-locked memory, false if none of it is.
bool is_page_locked(const Range& range);
std::string describe(uint64_t address);
void release_all_memory();
void trim_pool(uint64_t bytes);

// ---- image.cpp

Module read_image(const void* image, unsigned capability);

// ---- device.cpp

int attribute(int number);

} // namespace driver
