// Stacks, and switching between them.
#pragma once

#include <cstddef>

#include "sanitizers.h"

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace emulator {

// Enough for a kernel's local arrays, also with the red zones of the address sanitizer. Only pages that are used cost memory.
constexpr size_t STACK_BYTES = 256 * 1024;

// A place where execution stops and goes on: a fiber, or the OS thread that runs the fibers.
class Context {
  public:
    Context() = default;
    Context(const Context&) = delete;
    Context& operator=(const Context&) = delete;

    // Makes it a fiber on STACK_BYTES bytes, the first `stagger` bytes of which stay unused.
    void use_stack(char* bottom, size_t stagger);

    // The fiber will start with `entry`, which calls `started` first and leaves by `end_in` only.
    void prepare(void (*entry)());
    void started() { tracked.arrived(from->tracked); }

    // Makes it the OS thread that calls.
    void become_thread() { tracked.become_thread(); }

    // Goes on in `to`, and returns when another context switches back here.
    void switch_to(Context& to);

    // Goes on in `to`, for good.
    void end_in(Context& to);

    // The fiber stopped before its end and will not go on. It can be prepared again.
    void abandon() { tracked.reset(); }
    // What it has done comes before what those do who acquire `order` after.
    void release(Order& order) { tracked.release(order); }
    void acquire(Order& order) { tracked.acquire(order); }

  private:
    void jump(Context& to);

    Tracked tracked;
    // Which context switched here last.
    Context* from = nullptr;
    char* stack = nullptr;
    size_t usable = 0;
#if defined(__x86_64__)
    void* stack_pointer = nullptr;
#else
    ucontext_t saved;
#endif
};

// Memory for `count` stacks, each above a page that may not be touched. Never freed. Throws `std::bad_alloc`.
char* allocate_stacks(size_t count);
// Where stack `index` of that memory starts.
char* stack_at(char* stacks, size_t index);

} // namespace emulator
