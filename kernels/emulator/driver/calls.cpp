// How calls begin and end: counting, the context, what is printed.

#include <dlfcn.h>
#include <pthread.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>

#include "driver.h"

namespace driver {

namespace {

// What a process that ends with findings exits with.
constexpr int FINDINGS_EXIT = 97;

thread_local std::map<std::string, uint64_t> calls_of_thread;
thread_local CUcontext current = nullptr;

const char* code_name(int code) {
    switch (code) {
#define CODE(name, number, text)                                                                                       \
    case number:                                                                                                       \
        return #name;
        CUDA_CODES(CODE)
#undef CODE
    default:
        return nullptr;
    }
}

const char* code_text(int code) {
    switch (code) {
#define CODE(name, number, text)                                                                                       \
    case number:                                                                                                       \
        return text;
        CUDA_CODES(CODE)
#undef CODE
    default:
        return nullptr;
    }
}

std::string thread_name() {
    char name[32] = "";
    pthread_getname_np(pthread_self(), name, sizeof name);
    return name;
}

// At the end of the process: the counts go to the file that `TPGM_DRIVER_COUNTS` names, and findings are not forgotten.
__attribute__((destructor)) void at_exit() {
    State& state = State::get();
    if (const char* path = std::getenv("TPGM_DRIVER_COUNTS")) {
        if (std::FILE* file = std::fopen(path, "a")) {
            for (const auto& entry : state.calls) {
                std::fprintf(file, "%s %llu\n", entry.first.c_str(), static_cast<unsigned long long>(entry.second));
            }
            std::fclose(file);
        }
    }
    if (state.findings > 0) {
        std::fprintf(stderr, "libcuda stand-in: %llu findings, printed above\n",
                     static_cast<unsigned long long>(state.findings));
        std::fflush(nullptr);
        _exit(FINDINGS_EXIT);
    }
}

} // namespace

void* const CONTEXT = reinterpret_cast<void*>(0x77000);

// Lives as long as the process: threads may call until its very end.
State& State::get() {
    static State* const state = new State;
    return *state;
}

void begin(const char* function, Needs needs) {
    State& state = State::get();
    state.calls[function] += 1;
    calls_of_thread[function] += 1;
    static const bool trace = std::getenv("TPGM_DRIVER_TRACE") != nullptr;
    if (trace) {
        std::fprintf(stderr, "libcuda stand-in: %s (%s)\n", function, thread_name().c_str());
    }
    if (needs != Needs::Nothing && !state.initialized) {
        fail(CUDA_ERROR_NOT_INITIALIZED, "cuInit was not called");
    }
    if (needs == Needs::Context && !current) {
        fail(CUDA_ERROR_INVALID_CONTEXT, "the thread has no current context");
    }
    if (needs == Needs::Context && state.retained == 0) {
        fail(CUDA_ERROR_CONTEXT_IS_DESTROYED, "the context was released");
    }
    if ((needs == Needs::Context || needs == Needs::Device) && state.failed != CUDA_SUCCESS) {
        fail(state.failed, ""); // printed when it happened
    }
}

void report(const std::string& function, const Failure& failure) {
    if (!failure.reason.empty()) {
        std::fprintf(stderr, "libcuda stand-in: %s: %s: error %d, %s (thread %s)\n", function.c_str(),
                     failure.reason.c_str(), int(failure.code), code_name(failure.code), thread_name().c_str());
    }
}

void found(const std::string& function, const std::string& what) {
    State::get().findings += 1;
    std::fprintf(stderr, "libcuda stand-in: found in %s: %s (thread %s)\n", function.c_str(), what.c_str(),
                 thread_name().c_str());
}

} // namespace driver

using namespace driver;

API int cuInit(unsigned flags) {
    return call(__func__, Needs::Nothing, [&](Lock&) {
        if (flags != 0) {
            fail(CUDA_ERROR_INVALID_VALUE, "the flags have to be 0");
        }
        State::get().initialized = true;
    });
}

API int cuGetErrorName(int code, const char** name) {
    *name = code_name(code);
    return *name ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

API int cuGetErrorString(int code, const char** text) {
    *text = code_text(code);
    return *text ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

// The newest of the functions with a name, whatever version is asked for.
API int cuGetProcAddress_v2(const char* name, void** function, int, uint64_t, int* status) {
    static void* const library = [] {
        Dl_info info;
        dladdr(reinterpret_cast<void*>(&cuGetProcAddress_v2), &info);
        return dlopen(info.dli_fname, RTLD_NOW | RTLD_NOLOAD);
    }();
    *function = nullptr;
    for (const char* version : {"_v4", "_v3", "_v2", ""}) {
        if (!*function) {
            *function = dlsym(library, (std::string(name) + version).c_str());
        }
    }
    if (status) {
        *status = *function ? 0 : 1;
    }
    return *function ? CUDA_SUCCESS : CUDA_ERROR_NOT_FOUND;
}

API int cuDevicePrimaryCtxRetain(CUcontext* context, CUdevice device) {
    return call(__func__, Needs::Init, [&](Lock&) {
        use_device(device);
        State::get().retained += 1;
        *context = CONTEXT;
    });
}

// The last one takes everything with it.
API int cuDevicePrimaryCtxRelease_v2(CUdevice device) {
    return call(__func__, Needs::Init, [&](Lock& lock) {
        State& state = State::get();
        use_device(device);
        if (state.retained == 0) {
            fail(CUDA_ERROR_INVALID_CONTEXT, "it was not retained");
        }
        if (state.retained == 1 && state.failed == CUDA_SUCCESS) {
            drain_all(lock);
        }
        state.retained -= 1;
        if (state.retained > 0) {
            return;
        }
        state.failed = CUDA_SUCCESS;
        state.legacy = std::make_shared<Stream>();
        state.per_thread.clear();
        state.streams.clear();
        state.retired.clear();
        state.events.clear();
        state.graphs.clear();
        state.executables.clear();
        state.functions.clear();
        state.modules.clear();
        state.captures.clear();
        release_all_memory();
    });
}

API int cuCtxGetCurrent(CUcontext* context) {
    return call(__func__, Needs::Init, [&](Lock&) { *context = current; });
}

API int cuCtxSetCurrent(CUcontext context) {
    return call(__func__, Needs::Init, [&](Lock&) {
        if (context && (context != CONTEXT || State::get().retained == 0)) {
            fail(CUDA_ERROR_INVALID_CONTEXT, "there is no such context");
        }
        current = context;
    });
}

API int cuCtxGetDevice(CUdevice* device) {
    return call(__func__, Needs::Context, [&](Lock&) { *device = 0; });
}

API int cuCtxSynchronize() {
    return call(__func__, Needs::Context, [&](Lock& lock) {
        refuse_to_wait_for_captures();
        drain_all(lock);
        trim_pool(State::get().pool.threshold);
    });
}

API uint64_t tpgm_driver_calls(const char* name) {
    const auto counted = calls_of_thread.find(name);
    return counted == calls_of_thread.end() ? 0 : counted->second;
}

API uint64_t tpgm_driver_findings() {
    const Lock lock(State::get().mutex);
    return State::get().findings;
}
