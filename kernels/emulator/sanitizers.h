// What the sanitizers must be told of threads that are fibers. Nothing in a plain build.
//
// Thread sanitizer: the kernels are instrumented, the emulator is not. Each CUDA thread is one of its threads, switched to
// without synchronization; what CUDA orders is told by acquiring and releasing objects:
// - barriers and `__syncwarp` (shuffles and ballots order no memory);
// - a launch: what its caller did before comes before all threads, and all threads before its return;
// - blocks that run one after another on one OS thread, since they share memory for `__shared__`;
// - `__threadfence()` and atomics: an atomic publishes what its thread had done at its last fence, and a fence lets a thread
//   see what its atomics observed. Each CUDA thread has a second one, the shadow, whose clock is that of the last fence.
#pragma once

#include <cstddef>

#ifdef TPGM_EMULATOR_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#ifdef TPGM_EMULATOR_TSAN
extern "C" {
void* __tsan_get_current_fiber(void);
void* __tsan_create_fiber(unsigned flags);
void __tsan_destroy_fiber(void* fiber);
void __tsan_switch_to_fiber(void* fiber, unsigned flags);
void __tsan_acquire(void* address);
void __tsan_release(void* address);
}
#endif

namespace emulator {

// An object to acquire and release; only its address counts.
struct Order {
    char address;

#ifdef TPGM_EMULATOR_TSAN
    void acquire() { __tsan_acquire(this); }
    void release() { __tsan_release(this); }
#else
    void acquire() {}
    void release() {}
#endif
};

#ifdef TPGM_EMULATOR_TSAN
// Does something in the name of a thread of the sanitizer.
template <class Action> void in_name_of(void* fiber, Action action) {
    void* self = __tsan_get_current_fiber();
    if (fiber == self) {
        action();
        return;
    }
    __tsan_switch_to_fiber(fiber, 1);
    action();
    __tsan_switch_to_fiber(self, 1);
}
#endif

// A sanitizer's view of one stack: a fiber's, or that of the OS thread that runs the fibers.
class Tracked {
  public:
#ifdef TPGM_EMULATOR_ASAN
    // Around a switch: `leaving` before it on the old stack, `arrived` after it on the same stack, back again. A fiber that
    // ends passes `ended`: its bookkeeping is freed.
    void leaving(const Tracked& to, bool ended) {
        __sanitizer_start_switch_fiber(ended ? nullptr : &fake_stack, to.bottom, to.size);
    }
    // Where the stack of an OS thread is becomes known here only: when a fiber has come from it.
    void arrived(Tracked& from) {
        __sanitizer_finish_switch_fiber(fake_stack, &from.bottom, &from.size);
        fake_stack = nullptr;
    }
    void use_stack(const void* start, size_t bytes) {
        bottom = start;
        size = bytes;
    }
    // The stack is used from its start again. Calls that never returned have left red zones.
    void reset() {
        __asan_unpoison_memory_region(bottom, size);
        fake_stack = nullptr;
    }
    void become_thread() {}
    void release(Order&) {}
    void acquire(Order&) {}

  private:
    const void* bottom = nullptr;
    size_t size = 0;
    void* fake_stack = nullptr;
#elif defined(TPGM_EMULATOR_TSAN)
    void leaving(const Tracked& to, bool) { __tsan_switch_to_fiber(to.fiber, 1); }
    void arrived(Tracked&) {}
    void use_stack(const void*, size_t) { fiber = __tsan_create_fiber(0); }
    // A new thread: the old one's calls never returned.
    void reset() {
        __tsan_destroy_fiber(fiber);
        fiber = __tsan_create_fiber(0);
    }
    void become_thread() { fiber = __tsan_get_current_fiber(); }
    void release(Order& order) {
        in_name_of(fiber, [&order] { order.release(); });
    }
    void acquire(Order& order) {
        in_name_of(fiber, [&order] { order.acquire(); });
    }

  private:
    void* fiber = nullptr;
#else
    void leaving(const Tracked&, bool) {}
    void arrived(Tracked&) {}
    void use_stack(const void*, size_t) {}
    void reset() {}
    void become_thread() {}
    void release(Order&) {}
    void acquire(Order&) {}
#endif
};

// What the fences of one CUDA thread have ordered.
class Fences {
  public:
#ifdef TPGM_EMULATOR_TSAN
    void create() { shadow = __tsan_create_fiber(0); }
    void fence() {
        before.release();
        in_name_of(shadow, [this] {
            before.acquire();
            after.release();
        });
        after.acquire();
    }
    void before_atomic(void* at) {
        in_name_of(shadow, [at] { __tsan_release(at); });
    }
    void after_atomic(void* at) {
        in_name_of(shadow, [at] { __tsan_acquire(at); });
    }
    // A barrier joins what the threads' fences have ordered: all give, then all take.
    void give(Order& all) {
        in_name_of(shadow, [&all] { all.release(); });
    }
    void take(Order& all) {
        in_name_of(shadow, [&all] { all.acquire(); });
    }

  private:
    void* shadow = nullptr;
    Order before;
    Order after;
#else
    void create() {}
    void fence() {}
    void give(Order&) {}
    void take(Order&) {}
#endif
};

} // namespace emulator
