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

// The threads of the block that wait for each other, and what they brought.
struct Barrier {
    EmulatorBarrier kind = EmulatorBarrier::Plain;
    unsigned arrived = 0;
    bool any = false;
    bool all = true;
    int result = 0;
    Order order;
    Order fences;
};

// The lanes of a warp that wait, each for those in its mask, and what they brought.
struct Warp {
    // 0 for a lane that does not wait. Lanes that wait with the same mask wait for the same kind of operation.
    unsigned masks[WARP] = {};
    EmulatorWarp kinds[WARP];
    uint64_t values[WARP];
    unsigned sources[WARP];
    // By the lowest lane of the mask, so that groups of lanes are apart.
    Order order[WARP];

    // Who waits with the mask that was asked for last, which most often is asked for again.
    unsigned last_mask = 0;
    unsigned last_arrived = 0;

    // Who waits with this mask.
    unsigned arrived(unsigned mask) const;
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
    // Gives the block up.
    [[noreturn]] void fail(const std::string& reason);
    [[noreturn]] void main();

  private:
    void make_runnable(unsigned fiber);
    // Stops the current fiber until another makes it runnable.
    void wait(State state);
    Fiber* next();
    void open_barrier();
    void complete(unsigned warp, EmulatorWarp kind, unsigned mask);
    // Lets a fiber that waits go on; the one that runs just does.
    void release(unsigned fiber);
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
    // Between one block that runs here and the next. Two, in turn: else the threads of one block, which end before others
    // start, would seem to be ordered.
    Order between[2];
    unsigned turn = 0;
};

// True if the calling OS thread runs a block.
bool is_running();
// Gives that block up, from wherever its kernel is.
[[noreturn]] void fail_running(const std::string& reason);

} // namespace emulator
