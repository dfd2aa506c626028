// One block: its threads as fibers on one OS thread, which take turns at barriers, warp operations and polls.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <mutex>
#include <string>

#include "emulator.h"
#include "fiber.h"

namespace emulator {

constexpr unsigned THREADS = TPGM_THREADS;
constexpr unsigned WARP = 32;
constexpr unsigned WARPS = THREADS / WARP;
static_assert(THREADS % WARP == 0, "whole warps");

using Kernel = void (*)(const void*);

// What the blocks of one launch share.
struct Launch {
    Kernel kernel;
    const void* argument;
    unsigned blocks;
    std::chrono::steady_clock::time_point deadline;
    double timeout;

    // The next block to run.
    std::atomic<unsigned> next{0};
    // A block has failed: the others stop where they poll, and no more start.
    std::atomic<bool> failed{false};
    std::mutex lock;
    // What the first one that failed says.
    std::string message;

    Order start;
    Order end;

    void fail(const std::string& reason);
};

enum class State { Runnable, AtBarrier, InWarp, Ended };

struct Fiber : EmulatorThread {
    Context context;
    State state = State::Ended;
    // Of the last warp operation.
    uint64_t result = 0;
    Fences fences;
};

// Threads that wait, for each other, and what they brought.
struct Barrier {
    EmulatorBarrier kind = EmulatorBarrier::Plain;
    unsigned arrived = 0;
    bool any = false;
    bool all = true;
    int result = 0;
    // Two, in turn: a thread may come to the next barrier before another has left this one.
    Order order[2];
    Order fences;
    unsigned turn = 0;
};

struct Warp {
    EmulatorWarp kind = EmulatorWarp::Sync;
    unsigned mask = 0;
    unsigned arrived = 0;
    uint64_t values[WARP];
    unsigned sources[WARP];
    Order order[2];
    unsigned turn = 0;
};

// Runs blocks one after another, keeping the stacks. At most one OS thread uses it at a time.
class Block {
  public:
    Block();

    // Runs block `index` to its end, or until it fails.
    void run(Launch& launch, unsigned index);

    // Called by the fiber that runs.
    int barrier(EmulatorBarrier kind, int predicate);
    uint64_t warp(EmulatorWarp kind, unsigned mask, uint64_t value, unsigned source);
    void yield();
    Fiber& running() { return *current; }
    [[noreturn]] void main();

  private:
    void make_runnable(unsigned fiber);
    // Stops the current fiber until another makes it runnable.
    void wait(State state);
    Fiber* next();
    void open_barrier();
    void complete(unsigned warp);
    // Gives the block up.
    [[noreturn]] void fail(const std::string& reason);
    [[noreturn]] void stop();
    std::string who_waits() const;

    Fiber fibers[THREADS];
    Context thread;
    Launch* launch = nullptr;
    Fiber* current = nullptr;
    unsigned live = 0;
    bool stopped = false;
    // In a row, with nothing else in between.
    unsigned polls = 0;

    // Runnable fibers, in the order they run: a ring.
    unsigned queue[THREADS];
    unsigned first = 0;
    unsigned queued = 0;

    Barrier at_barrier;
    Warp warps[WARPS];
    // Between the blocks that run here.
    Order between;
};

} // namespace emulator
