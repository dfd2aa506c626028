// Kernels by name, launches over OS threads, and the functions the library exports.

#include <algorithm>
#include <condition_variable>
#include <cstdlib>
#include <exception>
#include <map>
#include <memory>
#include <thread>
#include <vector>

#include "block.h"

namespace emulator {

namespace {

// A kernel, and the bytes of the table that it takes by value; 0 if it takes an address.
struct Known {
    Kernel kernel;
    unsigned bytes;
};

std::map<std::string, Known>& kernels() {
    static std::map<std::string, Known> kernels;
    return kernels;
}

// A positive number in an environment variable, else `otherwise`.
double setting(const char* name, double otherwise) {
    const char* text = std::getenv(name);
    const double value = text ? std::strtod(text, nullptr) : 0;
    return value > 0 ? value : otherwise;
}

// At least two, so that blocks wait for each other anywhere.
[[maybe_unused]] unsigned cores() { return std::min(std::max(std::thread::hardware_concurrency(), 2u), 16u); }

// Blocks of a launch that run at a time.
unsigned count_of_threads() {
#ifdef TPGM_EMULATOR_ASAN
    return 1; // `__shared__` memory is one copy for all blocks: see `emulator.h`
#else
    return unsigned(std::max(setting("TPGM_EMULATOR_THREADS", cores()), 1.0));
#endif
}

// Launches that run at a time.
unsigned count_of_machines() {
#if defined(TPGM_EMULATOR_ASAN) || defined(TPGM_EMULATOR_TSAN)
    return 1; // as above; and what their callers do between launches is ordered by locks the thread sanitizer cannot see
#else
    return cores();
#endif
}

// OS threads for one launch at a time, with the stacks of a block for each. The caller of a launch is the first of them.
class Machine {
  public:
    Machine() : timeout(setting("TPGM_EMULATOR_TIMEOUT", 60)) {
        const unsigned count = count_of_threads();
        for (unsigned i = 0; i < count; ++i) {
            blocks.push_back(std::make_unique<Block>());
        }
    }

    unsigned threads() const { return unsigned(blocks.size()); }

    void run(Launch& launch) {
        launch.timeout = timeout;
        launch.deadline =
            std::chrono::steady_clock::now() +
            std::chrono::duration_cast<std::chrono::steady_clock::duration>(std::chrono::duration<double>(timeout));
        launch.start.release();
        const unsigned helpers = std::min(launch.blocks, threads()) - 1;
        if (helpers > 0) {
            start_helpers(launch, helpers);
        }
        run_blocks(launch, 0);
        if (helpers > 0) {
            std::unique_lock<std::mutex> guard(lock);
            finished.wait(guard, [this] { return working == 0; });
        }
        launch.end.acquire();
    }

  private:
    void start_helpers(Launch& launch, unsigned helpers) {
        while (started < helpers) {
            const unsigned helper = ++started;
            std::thread([this, helper] { help(helper); }).detach();
        }
        const std::lock_guard<std::mutex> guard(lock);
        current = &launch;
        turn += 1;
        wanted = helpers;
        working = helpers;
        wake.notify_all();
    }

    // What OS thread number `helper`, from 1, does for ever: its part of every launch that wants that many.
    [[noreturn]] void help(unsigned helper) {
        std::unique_lock<std::mutex> guard(lock);
        for (unsigned seen = 0;;) {
            wake.wait(guard, [&] { return turn != seen; });
            seen = turn;
            if (helper > wanted) {
                continue;
            }
            guard.unlock();
            run_blocks(*current, helper);
            guard.lock();
            working -= 1;
            if (working == 0) {
                finished.notify_one();
            }
        }
    }

    void run_blocks(Launch& launch, unsigned thread) {
#ifdef TPGM_EMULATOR_TSAN
        // Dealt out in turn, since races are seen only between blocks of different OS threads.
        for (unsigned index = thread; index < launch.blocks && !launch.failed; index += threads()) {
            blocks[thread]->run(launch, index);
        }
#else
        while (!launch.failed) {
            const unsigned index = launch.next.fetch_add(1);
            if (index >= launch.blocks) {
                break;
            }
            blocks[thread]->run(launch, index);
        }
#endif
    }

    const double timeout;
    std::vector<std::unique_ptr<Block>> blocks;
    unsigned started = 0;

    std::mutex lock;
    std::condition_variable wake;
    std::condition_variable finished;
    Launch* current = nullptr;
    unsigned turn = 0;
    unsigned wanted = 0;
    unsigned working = 0;
};

// The machines, kept from launch to launch. Lives as long as the process.
class Machines {
  public:
    static Machines& get() {
        static Machines* const machines = new Machines;
        return *machines;
    }

    void run(Launch& launch) {
        const auto give_back = [this](Machine* machine) {
            const std::lock_guard<std::mutex> guard(lock);
            idle.push_back(machine);
            returned.notify_one();
        };
        std::unique_ptr<Machine, decltype(give_back)>(take(), give_back)->run(launch);
    }

  private:
    Machine* take() {
        std::unique_lock<std::mutex> guard(lock);
        if (idle.empty() && made < limit) {
            idle.push_back(new Machine);
            made += 1;
        }
        returned.wait(guard, [this] { return !idle.empty(); });
        Machine* const machine = idle.back();
        idle.pop_back();
        return machine;
    }

    const unsigned limit = count_of_machines();
    std::mutex lock;
    std::condition_variable returned;
    std::vector<Machine*> idle;
    unsigned made = 0;
};

// Cut to what fits.
void report(const std::string& text, char* message, size_t capacity) {
    if (message && capacity > 0) {
        message[text.copy(message, capacity - 1)] = '\0';
    }
}

} // namespace

} // namespace emulator

using emulator::report;

bool emulator_register(const char* name, void (*kernel)(const void*)) {
    emulator::kernels()[name] = {kernel, 0};
    return true;
}

// Declared in `layers/layer.cuh`.
bool emulator_register_table(const char* name, void (*kernel)(const void*), unsigned bytes);
bool emulator_register_table(const char* name, void (*kernel)(const void*), unsigned bytes) {
    emulator::kernels()[name] = {kernel, bytes};
    return true;
}

#define EXPORT extern "C" __attribute__((visibility("default")))

// Runs a kernel to its end: `blocks` blocks, each thread called with `argument` as its pointer; where a kernel takes its table
// by value, that is where the table is, and it has to stay as it is until the end. 0 if all went well, else
// `message` says what did not, cut to `capacity` bytes with the 0 at its end. Any thread may call this at any time.
EXPORT int tpgm_emulator_launch(const char* kernel, uint32_t blocks, uint64_t argument, char* message, size_t capacity) {
    try {
        const auto found = emulator::kernels().find(kernel);
        if (found == emulator::kernels().end()) {
            report("there is no such kernel", message, capacity);
            return 1;
        }
        if (blocks == 0) {
            report("a launch of no blocks", message, capacity);
            return 1;
        }
        emulator::Launch launch;
        launch.kernel = found->second.kernel;
        launch.argument = reinterpret_cast<const void*>(argument);
        launch.blocks = blocks;
        emulator::Machines::get().run(launch);
        if (launch.failed) {
            report(launch.message, message, capacity);
            return 1;
        }
        return 0;
    } catch (const std::exception& error) { // no memory, no more OS threads
        report(error.what(), message, capacity);
        return 1;
    }
}

// Bytes of the table that a kernel takes by value; 0 if it takes an address, or is not there.
EXPORT uint32_t tpgm_emulator_table_bytes(const char* kernel) {
    const auto found = emulator::kernels().find(kernel);
    return found == emulator::kernels().end() ? 0 : found->second.bytes;
}

// Threads of a block that the kernels were compiled for.
EXPORT uint32_t tpgm_emulator_threads_per_block(void) { return emulator::THREADS; }

// Blocks of a launch that run at the same time.
EXPORT uint32_t tpgm_emulator_resident_blocks(void) { return emulator::count_of_threads(); }

// Names of the kernels, one a line.
EXPORT const char* tpgm_emulator_kernels(void) {
    static const std::string* const names = [] {
        std::string* text = new std::string;
        for (const auto& kernel : emulator::kernels()) {
            *text += kernel.first + "\n";
        }
        return text;
    }();
    return names->c_str();
}
