#include "block.h"

#include <algorithm>
#include <cstdio>
#include <iterator>
#include <thread>

EMULATOR_FAST_TLS const EmulatorThread* emulator_current = nullptr;

namespace emulator {

namespace {

// The block that this OS thread runs.
EMULATOR_FAST_TLS Block* running_block = nullptr;

void start_fiber() { running_block->main(); }

std::string hexadecimal(unsigned value) {
    char text[16];
    std::snprintf(text, sizeof text, "0x%08x", value);
    return text;
}

const char* name(EmulatorBarrier kind) {
    switch (kind) {
    case EmulatorBarrier::Or:
        return "__syncthreads_or";
    case EmulatorBarrier::And:
        return "__syncthreads_and";
    default:
        return "__syncthreads";
    }
}

const char* name(EmulatorWarp kind) {
    switch (kind) {
    case EmulatorWarp::Shuffle:
        return "a shuffle";
    case EmulatorWarp::Ballot:
        return "__ballot_sync";
    default:
        return "__syncwarp";
    }
}

} // namespace

void Launch::fail(const std::string& reason) {
    const std::lock_guard<std::mutex> guard(lock);
    if (!failed.exchange(true)) {
        message = reason;
    }
}

Block::Block() {
    char* stacks = allocate_stacks(THREADS);
    for (unsigned i = 0; i < THREADS; ++i) {
        // Stack tops at equal distances would share one set of the cache.
        fibers[i].context.use_stack(stack_at(stacks, i), (i % 64) * 832);
        fibers[i].fences.create();
    }
}

void Block::run(Launch& of, unsigned index) {
    launch = &of;
    at_barrier.arrived = 0;
    at_barrier.any = false;
    at_barrier.all = true;
    for (Warp& warp : warps) {
        std::fill(std::begin(warp.masks), std::end(warp.masks), 0u);
        warp.last_mask = 0;
    }
    first = 0;
    queued = 0;
    for (unsigned i = 0; i < THREADS; ++i) {
        Fiber& fiber = fibers[i];
        if (stopped) {
            fiber.context.abandon();
        }
        fiber.thread = {i, 0, 0};
        fiber.block = {index, 0, 0};
        fiber.block_size = {THREADS, 1, 1};
        fiber.grid_size = {of.blocks, 1, 1};
        fiber.context.prepare(start_fiber);
        make_runnable(i);
    }
    live = THREADS;
    stopped = false;
    polls = 0;

    Block* outer = running_block;
    running_block = this;
    thread.become_thread();
    turn ^= 1;
    between[turn].release(); // whoever set up this OS thread's memory for `__shared__` did so before
    current = next();
    emulator_current = current;
    thread.switch_to(current->context);
    emulator_current = nullptr;
    running_block = outer;
}

// A fiber's whole life.
void Block::main() {
    Fiber& fiber = *current;
    fiber.context.started();
    launch->start.acquire();
    between[turn].acquire();
    launch->kernel(launch->argument);
    between[turn ^ 1].release();
    launch->end.release();

    fiber.state = State::Ended;
    live -= 1;
    polls = 0;
    if (live > 0 && at_barrier.arrived == live) {
        open_barrier();
    }
    if (live == 0) {
        fiber.context.end_in(thread);
    }
    current = next();
    emulator_current = current;
    fiber.context.end_in(current->context);
    __builtin_unreachable();
}

void Block::make_runnable(unsigned fiber) {
    fibers[fiber].state = State::Runnable;
    queue[(first + queued) % THREADS] = fiber;
    queued += 1;
}

Fiber* Block::next() {
    if (queued == 0) {
        fail("divergent barrier: " + who_waits());
    }
    Fiber* fiber = &fibers[queue[first]];
    first = (first + 1) % THREADS;
    queued -= 1;
    return fiber;
}

void Block::wait(State state) {
    Fiber& fiber = *current;
    fiber.state = state;
    polls = 0;
    current = next();
    emulator_current = current;
    fiber.context.switch_to(current->context);
}

void Block::release(unsigned fiber) {
    if (&fibers[fiber] == current) {
        fibers[fiber].state = State::Runnable;
    } else {
        make_runnable(fiber);
    }
}

int Block::barrier(EmulatorBarrier kind, int predicate) {
    if (at_barrier.arrived > 0 && at_barrier.kind != kind) {
        fail(std::string("divergent barrier: threads wait at ") + name(at_barrier.kind) + " while thread " +
             std::to_string(current->thread.x) + " comes to " + name(kind));
    }
    at_barrier.kind = kind;
    at_barrier.any |= predicate != 0;
    at_barrier.all &= predicate != 0;
    at_barrier.arrived += 1;
    if (at_barrier.arrived == live) {
        current->state = State::AtBarrier;
        open_barrier();
    } else {
        wait(State::AtBarrier);
    }
    return at_barrier.result;
}

// All who live have come: they go on.
void Block::open_barrier() {
    at_barrier.result = at_barrier.kind == EmulatorBarrier::Or    ? at_barrier.any
                        : at_barrier.kind == EmulatorBarrier::And ? at_barrier.all
                                                                  : 0;
    at_barrier.arrived = 0;
    at_barrier.any = false;
    at_barrier.all = true;
    for (Fiber& fiber : fibers) {
        if (fiber.state == State::AtBarrier) {
            fiber.context.release(at_barrier.order);
            fiber.fences.give(at_barrier.fences);
        }
    }
    for (unsigned i = 0; i < THREADS; ++i) {
        if (fibers[i].state == State::AtBarrier) {
            fibers[i].context.acquire(at_barrier.order);
            fibers[i].fences.take(at_barrier.fences);
            release(i);
        }
    }
}

unsigned Warp::arrived(unsigned mask) const {
    unsigned lanes = 0;
    for (unsigned lane = 0; lane < WARP; ++lane) {
        lanes |= unsigned(masks[lane] == mask) << lane;
    }
    return lanes;
}

uint64_t Block::warp(EmulatorWarp kind, unsigned mask, uint64_t value, unsigned source) {
    const unsigned lane = current->thread.x % WARP;
    const unsigned index = current->thread.x / WARP;
    const auto thread = [this] { return "thread " + std::to_string(current->thread.x); };
    Warp& warp = warps[index];
    if ((mask >> lane & 1) == 0) {
        fail(thread() + " is not in its own mask " + hexadecimal(mask));
    }
    if (kind == EmulatorWarp::Shuffle && (mask >> source & 1) == 0) {
        fail(thread() + " shuffles from lane " + std::to_string(source) + ", which is not in the mask " +
             hexadecimal(mask));
    }
    const unsigned before = mask == warp.last_mask ? warp.last_arrived : warp.arrived(mask);
    if (before != 0 && warp.kinds[__builtin_ctz(before)] != kind) {
        fail(std::string("divergent warp: lanes wait at ") + name(warp.kinds[__builtin_ctz(before)]) + " while " +
             thread() + " comes to " + name(kind) + " with the same mask " + hexadecimal(mask));
    }
    warp.masks[lane] = mask;
    warp.kinds[lane] = kind;
    warp.values[lane] = value;
    warp.sources[lane] = source;
    warp.last_mask = mask;
    warp.last_arrived = before | 1u << lane;
    if (warp.last_arrived == mask) {
        current->state = State::InWarp;
        complete(index, kind, mask);
        warp.last_arrived = 0;
    } else {
        wait(State::InWarp);
    }
    return current->result;
}

// All lanes of a mask have come: they get their results and go on.
void Block::complete(unsigned index, EmulatorWarp kind, unsigned mask) {
    Warp& warp = warps[index];
    Order& order = warp.order[__builtin_ctz(mask)];
    uint64_t ballot = 0;
    for (unsigned lane = 0; lane < WARP; ++lane) {
        if ((mask >> lane & 1) != 0) {
            ballot |= warp.values[lane] << lane;
            if (kind == EmulatorWarp::Sync) {
                fibers[index * WARP + lane].context.release(order);
            }
        }
    }
    for (unsigned lane = 0; lane < WARP; ++lane) {
        if ((mask >> lane & 1) != 0) {
            Fiber& fiber = fibers[index * WARP + lane];
            fiber.result = kind == EmulatorWarp::Shuffle ? warp.values[warp.sources[lane]] : ballot;
            if (kind == EmulatorWarp::Sync) {
                fiber.context.acquire(order);
            }
            warp.masks[lane] = 0;
            release(index * WARP + lane);
        }
    }
}

void Block::yield() {
    if (launch->failed) {
        stop();
    }
    // A round in which every thread that can run only polled: it is for another block to go on.
    polls += 1;
    if (polls > queued) {
        polls = 0;
        if (std::chrono::steady_clock::now() > launch->deadline) {
            char seconds[32];
            std::snprintf(seconds, sizeof seconds, "%g", launch->timeout);
            fail(std::string("still polls ") + seconds +
                 " s after the launch: it waits for what never comes, or for a block of a higher ticket (" +
                 who_waits() + ")");
        }
        std::this_thread::yield();
    }
    if (queued > 0) {
        Fiber& fiber = *current;
        make_runnable(fiber.thread.x);
        current = next();
        emulator_current = current;
        fiber.context.switch_to(current->context);
    }
}

// How many threads wait where.
std::string Block::who_waits() const {
    std::string where;
    const auto add = [&where](unsigned count, const std::string& what) {
        if (count > 0) {
            where += (where.empty() ? "" : ", ") + std::to_string(count) + " " + what;
        }
    };
    unsigned ended = 0;
    unsigned polling = 0;
    for (const Fiber& fiber : fibers) {
        ended += fiber.state == State::Ended;
        polling += fiber.state == State::Runnable;
    }
    add(at_barrier.arrived, std::string("of ") + std::to_string(THREADS) + " threads wait at " + name(at_barrier.kind));
    for (unsigned i = 0; i < WARPS; ++i) {
        const Warp& warp = warps[i];
        // Each group is told by its lowest lane.
        for (unsigned lane = 0; lane < WARP; ++lane) {
            const unsigned group = warp.masks[lane] != 0 ? warp.arrived(warp.masks[lane]) : 0;
            if (group != 0 && unsigned(__builtin_ctz(group)) == lane) {
                add(unsigned(__builtin_popcount(group)),
                    std::string("of warp ") + std::to_string(i) + " at " + name(warp.kinds[lane]) + " with mask " +
                        hexadecimal(warp.masks[lane]));
            }
        }
    }
    add(polling, "poll");
    add(ended, "have ended");
    return where;
}

void Block::fail(const std::string& reason) {
    launch->fail("block " + std::to_string(fibers[0].block.x) + " of " + std::to_string(launch->blocks) + ": " +
                 reason);
    stop();
}

void Block::stop() {
    stopped = true;
    for (Fiber& fiber : fibers) {
        fiber.context.release(between[turn ^ 1]);
        fiber.context.release(launch->end);
    }
    Fiber& fiber = *current;
    fiber.context.end_in(thread);
    __builtin_unreachable();
}

bool is_running() { return running_block != nullptr; }

void fail_running(const std::string& reason) { running_block->fail(reason); }

} // namespace emulator

using emulator::running_block;

int emulator_barrier(EmulatorBarrier kind, int predicate) { return running_block->barrier(kind, predicate); }

uint64_t emulator_warp(EmulatorWarp kind, unsigned mask, uint64_t value, unsigned source_lane) {
    return running_block->warp(kind, mask, value, source_lane);
}

void emulator_yield() { running_block->yield(); }

void __threadfence() { running_block->running().fences.fence(); }

#ifdef TPGM_EMULATOR_TSAN
void emulator_before_atomic(void* at) { running_block->running().fences.before_atomic(at); }
void emulator_after_atomic(void* at) { running_block->running().fences.after_atomic(at); }
#endif
