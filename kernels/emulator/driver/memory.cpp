// Device memory and page-locked memory.
//
// Device memory lies in one range of addresses that is given out once, from its start: every allocation ends at a page that
// may not be touched, and what is freed may not be touched again. So a kernel that leaves its memory is stopped.

#include <signal.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <new>

#include "driver.h"
#include "emulator/block.h"

namespace driver {

namespace {

constexpr uint64_t ARENA_BYTES = 1ull << 38;
constexpr uint64_t PAGE = 4096;
// What CUDA aligns memory to.
constexpr uint64_t ALIGNMENT = 256;
// What memory holds that nobody has written to.
constexpr int GARBAGE = 0xa5;

uint64_t arena = 0;
uint64_t arena_used = 0;
struct sigaction handler_before;

uint64_t round_up(uint64_t bytes, uint64_t to) { return (bytes + to - 1) / to * to; }
void* pointer(uint64_t address) { return reinterpret_cast<void*>(address); }
std::string hexadecimal(uint64_t value) {
    char text[24];
    std::snprintf(text, sizeof text, "0x%llx", static_cast<unsigned long long>(value));
    return text;
}

// A kernel has touched memory that it has not: its launch fails. Anything else is left to who handled it before.
void on_fault(int signal, siginfo_t* info, void*) {
    const uint64_t address = reinterpret_cast<uint64_t>(info->si_addr);
    if (emulator::is_running()) {
        std::string reason;
        {
            const Lock lock(State::get().mutex);
            reason = "an illegal address: " + describe(address);
        }
        emulator::fail_running(reason);
    }
    sigaction(signal, &handler_before, nullptr);
}

void reserve_arena() {
    void* start = mmap(nullptr, ARENA_BYTES, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (start == MAP_FAILED) {
        throw std::bad_alloc();
    }
    arena = reinterpret_cast<uint64_t>(start);
    struct sigaction handler = {};
    handler.sa_sigaction = on_fault;
    // On the stack of the fiber, which the launch leaves for good.
    handler.sa_flags = SA_SIGINFO | SA_NODEFER;
    sigaction(SIGSEGV, &handler, &handler_before);
}

// The pages of an allocation, the last of which ends where it does.
Range pages_of(uint64_t start, size_t bytes) {
    const uint64_t end = start + round_up(bytes, ALIGNMENT);
    const uint64_t first = start / PAGE * PAGE;
    return {first, end - first};
}

uint64_t allocate(size_t bytes, bool pooled) {
    State& state = State::get();
    if (arena == 0) {
        reserve_arena();
    }
    const uint64_t used = round_up(bytes, ALIGNMENT);
    const uint64_t pages = round_up(used, PAGE);
    if (bytes > ARENA_BYTES || arena_used + pages + PAGE > ARENA_BYTES) {
        fail(CUDA_ERROR_OUT_OF_MEMORY, std::to_string(bytes) + " bytes are more than there are");
    }
    const uint64_t start = arena + arena_used + pages - used;
    if (mprotect(pointer(arena + arena_used), pages, PROT_READ | PROT_WRITE) != 0) {
        fail(CUDA_ERROR_OUT_OF_MEMORY, "the system gives no more memory, or no more maps (vm.max_map_count)");
    }
    arena_used += pages + PAGE;
    std::memset(pointer(start), GARBAGE, used);
    state.device[start] = {bytes, pooled, false};
    if (pooled) {
        Pool& pool = state.pool;
        pool.used += bytes;
        pool.used_high = std::max(pool.used_high, pool.used);
        pool.reserved = std::max(pool.reserved, pool.used);
        pool.reserved_high = std::max(pool.reserved_high, pool.reserved);
    }
    return start;
}

void release(uint64_t start) {
    State& state = State::get();
    const Allocation allocation = state.device.at(start);
    const Range pages = pages_of(start, allocation.bytes);
    const char* memory = static_cast<const char*>(pointer(start));
    for (size_t at = allocation.bytes; at < round_up(allocation.bytes, ALIGNMENT); ++at) {
        if (memory[at] != char(GARBAGE)) {
            found("a kernel", "something was written behind the end of " + std::to_string(allocation.bytes) +
                                  " bytes of device memory, at byte " + std::to_string(at));
            break;
        }
    }
    madvise(pointer(pages.start), pages.bytes, MADV_DONTNEED);
    mprotect(pointer(pages.start), pages.bytes, PROT_NONE);
    if (allocation.pooled) {
        state.pool.used -= allocation.bytes;
    }
    state.freed[start] = allocation.bytes;
    state.device.erase(start);
}

// The allocation that an address is in, or the last one before it.
template <class T>
typename std::map<uint64_t, T>::iterator at_or_before(std::map<uint64_t, T>& map, uint64_t address) {
    const auto after = map.upper_bound(address);
    return after == map.begin() ? map.end() : std::prev(after);
}

bool is_alive(const Range& range) {
    auto& device = State::get().device;
    const auto found = at_or_before(device, range.start);
    return found != device.end() && Range{found->first, found->second.bytes}.holds(range);
}

Allocation& to_free(CUdeviceptr memory) {
    auto& device = State::get().device;
    const auto found = device.find(memory);
    if (found == device.end()) {
        fail(CUDA_ERROR_INVALID_VALUE, "this is not the start of device memory: " + describe(memory));
    }
    if (found->second.free_queued) {
        fail(CUDA_ERROR_INVALID_VALUE, "the memory has been freed before");
    }
    return found->second;
}

void free_later(CUdeviceptr memory, const std::shared_ptr<Stream>& stream) {
    to_free(memory).free_queued = true;
    Work work;
    work.what = "cuMemFreeAsync";
    work.run = [memory](Lock&) { release(memory); };
    push(stream, std::move(work));
}

Range host(const void* memory, size_t bytes) { return {reinterpret_cast<uint64_t>(memory), bytes}; }

void set(const char* what, CUdeviceptr to, unsigned char value, size_t bytes, const std::shared_ptr<Stream>& stream) {
    if (bytes == 0) {
        return;
    }
    check_device({to, bytes});
    Work work;
    work.what = what;
    work.device = {{to, bytes}};
    work.run = [=](Lock&) { std::memset(pointer(to), value, bytes); };
    push(stream, std::move(work));
}

[[noreturn]] void refuse_pageable(Stream& stream) {
    spoil(*stream.capture, CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED,
          "a copy of host memory that is not page-locked is captured");
}

void copy_in(const char* what, CUdeviceptr to, const void* from, size_t bytes, const std::shared_ptr<Stream>& stream) {
    if (bytes == 0) {
        return;
    }
    check_device({to, bytes});
    Work work;
    work.what = what;
    work.device = {{to, bytes}};
    if (is_page_locked(host(from, bytes))) {
        work.source = host(from, bytes);
        work.run = [=](Lock&) { std::memcpy(pointer(to), from, bytes); };
    } else {
        if (stream->capture) {
            refuse_pageable(*stream);
        }
        // The driver has a copy when the call returns.
        const char* start = static_cast<const char*>(from);
        const auto copy = std::make_shared<std::vector<char>>(start, start + bytes);
        work.run = [=](Lock&) { std::memcpy(pointer(to), copy->data(), bytes); };
    }
    push(stream, std::move(work));
}

void copy_out(Lock& lock, const char* what, void* to, CUdeviceptr from, size_t bytes,
              const std::shared_ptr<Stream>& stream) {
    if (bytes == 0) {
        return;
    }
    check_device({from, bytes});
    const bool page_locked = is_page_locked(host(to, bytes));
    if (!page_locked && stream->capture) {
        refuse_pageable(*stream);
    }
    Work work;
    work.what = what;
    work.device = {{from, bytes}};
    if (page_locked) {
        work.target = host(to, bytes);
    }
    work.run = [=](Lock&) { std::memcpy(to, pointer(from), bytes); };
    push(stream, std::move(work));
    if (!page_locked) {
        drain(lock, *stream); // the call returns when the copy is done
    }
}

void copy_within(const char* what, CUdeviceptr to, CUdeviceptr from, size_t bytes,
                 const std::shared_ptr<Stream>& stream) {
    if (bytes == 0) {
        return;
    }
    check_device({to, bytes});
    check_device({from, bytes});
    if (Range{to, bytes}.overlaps({from, bytes})) {
        fail(CUDA_ERROR_INVALID_VALUE, "the two ranges overlap");
    }
    Work work;
    work.what = what;
    work.device = {{to, bytes}, {from, bytes}};
    work.run = [=](Lock&) { std::memcpy(pointer(to), pointer(from), bytes); };
    push(stream, std::move(work));
}

} // namespace

void check_device(const Range& range) {
    if (!is_alive(range)) {
        fail(CUDA_ERROR_INVALID_VALUE,
             std::to_string(range.bytes) + " bytes are not all in one allocation: " + describe(range.start));
    }
}

void check_alive(const Range& range) {
    if (!is_alive(range)) {
        fail(CUDA_ERROR_ILLEGAL_ADDRESS, "it uses memory that is not there: " + describe(range.start));
    }
}

bool is_page_locked(const Range& range) {
    auto& map = State::get().page_locked;
    const auto before = at_or_before(map, range.start);
    if (before != map.end() && Range{before->first, before->second}.holds(range)) {
        return true;
    }
    const auto after = map.upper_bound(range.start);
    if ((before != map.end() && Range{before->first, before->second}.overlaps(range)) ||
        (after != map.end() && Range{after->first, after->second}.overlaps(range))) {
        fail(CUDA_ERROR_INVALID_VALUE, std::to_string(range.bytes) + " bytes of the host are page-locked in part");
    }
    return false;
}

std::string describe(uint64_t address) {
    State& state = State::get();
    const auto inside = [&](const char* kind, uint64_t start, size_t bytes) {
        const std::string which = std::to_string(bytes) + kind;
        return hexadecimal(address) + " is " +
               (address < start + bytes ? "byte " + std::to_string(address - start) + " of "
                                        : std::to_string(address - start - bytes) + " bytes behind the end of ") +
               which;
    };
    const auto live = at_or_before(state.device, address);
    const auto freed = at_or_before(state.freed, address);
    if (freed != state.freed.end() && (live == state.device.end() || live->first < freed->first)) {
        return inside(" bytes that were freed", freed->first, freed->second);
    }
    if (live != state.device.end()) {
        return inside(" bytes of device memory", live->first, live->second.bytes);
    }
    return hexadecimal(address) + " is no address of device memory";
}

void release_all_memory() {
    State& state = State::get();
    while (!state.device.empty()) {
        release(state.device.begin()->first);
    }
    for (const auto& entry : state.page_locked) {
        munmap(pointer(entry.first), round_up(entry.second, PAGE));
    }
    state.page_locked.clear();
    state.pool = Pool();
}

void trim_pool(uint64_t bytes) {
    Pool& pool = State::get().pool;
    pool.reserved = std::max(pool.used, std::min(pool.reserved, bytes));
}

} // namespace driver

using namespace driver;

API int cuMemGetInfo_v2(size_t* free, size_t* total) {
    return call(__func__, Needs::Context, [&](Lock&) {
        *total = ARENA_BYTES;
        *free = ARENA_BYTES - arena_used;
    });
}

API int cuMemAlloc_v2(CUdeviceptr* memory, size_t bytes) {
    return call(__func__, Needs::Context, [&](Lock&) {
        refuse_in_captures("cuMemAlloc_v2");
        if (bytes == 0) {
            fail(CUDA_ERROR_INVALID_VALUE, "an allocation of no bytes");
        }
        *memory = allocate(bytes, false);
    });
}

// Waits for everything.
API int cuMemFree_v2(CUdeviceptr memory) {
    return call(__func__, Needs::Context, [&](Lock& lock) {
        refuse_in_captures("cuMemFree_v2");
        if (memory != 0) {
            to_free(memory);
            drain_all(lock);
            release(memory);
        }
    });
}

API int cuMemAllocAsync(CUdeviceptr* memory, size_t bytes, CUstream handle) {
    return call(__func__, Needs::Context, [&](Lock&) {
        const auto stream = stream_of(handle);
        if (stream->capture) {
            spoil(*stream->capture, CUDA_ERROR_NOT_SUPPORTED, "the stand-in knows no allocations in graphs");
        }
        *memory = bytes == 0 ? 0 : allocate(bytes, true);
    });
}

API int cuMemFreeAsync(CUdeviceptr memory, CUstream handle) {
    return call(__func__, Needs::Context, [&](Lock&) {
        const auto stream = stream_of(handle);
        if (memory == 0) {
            return;
        }
        if (stream->capture) {
            spoil(*stream->capture, CUDA_ERROR_INVALID_VALUE, "a graph frees memory that it has not allocated");
        }
        free_later(memory, stream);
    });
}

API int cuMemHostAlloc(void** memory, size_t bytes, unsigned) {
    return call(__func__, Needs::Context, [&](Lock&) {
        refuse_in_captures("cuMemHostAlloc");
        if (bytes == 0) {
            fail(CUDA_ERROR_INVALID_VALUE, "an allocation of no bytes");
        }
        void* start = mmap(nullptr, round_up(bytes, PAGE), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (start == MAP_FAILED) {
            throw std::bad_alloc();
        }
        std::memset(start, GARBAGE, bytes);
        State::get().page_locked[reinterpret_cast<uint64_t>(start)] = bytes;
        *memory = start;
    });
}

// The manual does not say that this waits, though drivers are said to; so who relies on it is told, and then it does.
API int cuMemFreeHost(void* memory) {
    return call(__func__, Needs::Context, [&](Lock& lock) {
        refuse_in_captures("cuMemFreeHost");
        auto& page_locked = State::get().page_locked;
        const auto entry = page_locked.find(reinterpret_cast<uint64_t>(memory));
        if (entry == page_locked.end()) {
            fail(CUDA_ERROR_INVALID_VALUE, "this is not the start of page-locked memory");
        }
        const Range range = {entry->first, entry->second};
        for (const auto& stream : all_streams()) {
            const auto uses = [&](const Work& work) {
                return work.source.overlaps(range) || work.target.overlaps(range);
            };
            const auto work = std::find_if(stream->queue.begin(), stream->queue.end(), uses);
            if (work != stream->queue.end()) {
                found("cuMemFreeHost", "page-locked memory of " + std::to_string(range.bytes) + " bytes is freed before " +
                                           work->what + " has run, which copies " +
                                           (work->source.overlaps(range) ? "from" : "to") + " it");
                drain(lock, *stream);
            }
        }
        munmap(memory, round_up(range.bytes, PAGE));
        page_locked.erase(range.start);
    });
}

API int cuMemsetD8Async(CUdeviceptr to, unsigned char value, size_t bytes, CUstream stream) {
    return call(__func__, Needs::Context, [&](Lock&) { set("cuMemsetD8Async", to, value, bytes, stream_of(stream)); });
}

API int cuMemsetD8_v2(CUdeviceptr to, unsigned char value, size_t bytes) {
    return call(__func__, Needs::Context, [&](Lock&) { set("cuMemsetD8_v2", to, value, bytes, stream_of(nullptr)); });
}

API int cuMemcpyHtoDAsync_v2(CUdeviceptr to, const void* from, size_t bytes, CUstream stream) {
    return call(__func__, Needs::Context,
                [&](Lock&) { copy_in("cuMemcpyHtoDAsync_v2", to, from, bytes, stream_of(stream)); });
}

API int cuMemcpyHtoD_v2(CUdeviceptr to, const void* from, size_t bytes) {
    return call(__func__, Needs::Context, [&](Lock& lock) {
        copy_in("cuMemcpyHtoD_v2", to, from, bytes, stream_of(nullptr));
        drain(lock, *State::get().legacy);
    });
}

API int cuMemcpyDtoHAsync_v2(void* to, CUdeviceptr from, size_t bytes, CUstream stream) {
    return call(__func__, Needs::Context,
                [&](Lock& lock) { copy_out(lock, "cuMemcpyDtoHAsync_v2", to, from, bytes, stream_of(stream)); });
}

API int cuMemcpyDtoH_v2(void* to, CUdeviceptr from, size_t bytes) {
    return call(__func__, Needs::Context, [&](Lock& lock) {
        copy_out(lock, "cuMemcpyDtoH_v2", to, from, bytes, stream_of(nullptr));
        drain(lock, *State::get().legacy);
    });
}

API int cuMemcpyDtoDAsync_v2(CUdeviceptr to, CUdeviceptr from, size_t bytes, CUstream stream) {
    return call(__func__, Needs::Context,
                [&](Lock&) { copy_within("cuMemcpyDtoDAsync_v2", to, from, bytes, stream_of(stream)); });
}

API int cuMemcpyDtoD_v2(CUdeviceptr to, CUdeviceptr from, size_t bytes) {
    return call(__func__, Needs::Context,
                [&](Lock&) { copy_within("cuMemcpyDtoD_v2", to, from, bytes, stream_of(nullptr)); });
}
