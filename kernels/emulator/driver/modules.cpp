// Modules, and launches: the emulator runs the kernel that has the function's name.

#include <cstring>

#include "driver.h"
#include "emulator/block.h"

extern "C" int tpgm_emulator_launch(const char* kernel, uint32_t blocks, uint64_t argument, char* message,
                                    size_t capacity);
extern "C" const char* tpgm_emulator_kernels(void);
extern "C" uint32_t tpgm_emulator_table_bytes(const char* kernel);

namespace driver {

namespace {

// Blocks that a multiprocessor holds at a time, as on GPUs for most of the kernels.
constexpr int RESIDENT = 2;

bool in_library(const std::string& kernel) {
    return ("\n" + std::string(tpgm_emulator_kernels())).find("\n" + kernel + "\n") != std::string::npos;
}

void occupancy(int* blocks, CUfunction function, int threads, size_t shared) {
    State::get().functions.get(function, "function");
    if (threads <= 0) {
        fail(CUDA_ERROR_INVALID_VALUE, "blocks of no threads");
    }
    *blocks = threads <= int(emulator::THREADS) && shared == 0 ? RESIDENT : 0;
}

void run(Lock& lock, const std::string& kernel, unsigned blocks, uint64_t argument) {
    char message[2048] = "";
    lock.unlock();
    const int result = tpgm_emulator_launch(kernel.c_str(), blocks, argument, message, sizeof message);
    lock.lock();
    if (result != 0) {
        const bool address = std::strstr(message, "an illegal address") != nullptr;
        fail(address ? CUDA_ERROR_ILLEGAL_ADDRESS : CUDA_ERROR_LAUNCH_FAILED, message);
    }
}

} // namespace

} // namespace driver

using namespace driver;

API int cuModuleLoadData(CUmodule* module, const void* image) {
    return call(__func__, Needs::Context, [&](Lock&) {
        refuse_in_captures("cuModuleLoadData");
        State& state = State::get();
        *module = state.modules.add(read_image(image, unsigned(10 * attribute(75) + attribute(76))), state.next_handle);
    });
}

API int cuModuleUnload(CUmodule module) {
    return call(__func__, Needs::Context, [&](Lock&) {
        State& state = State::get();
        state.modules.remove(module, "module");
        auto& functions = state.functions.all();
        for (auto entry = functions.begin(); entry != functions.end();) {
            entry = entry->second.module == module ? functions.erase(entry) : std::next(entry);
        }
    });
}

API int cuModuleGetFunction(CUfunction* function, CUmodule handle, const char* name) {
    return call(__func__, Needs::Context, [&](Lock&) {
        State& state = State::get();
        const Module& module = state.modules.get(handle, "module");
        if (module.names_visible && module.names.count(name) == 0) {
            fail(CUDA_ERROR_NOT_FOUND, std::string("the module has no kernel ") + name);
        }
        if (!in_library(name)) {
            fail(CUDA_ERROR_NOT_FOUND, std::string("the emulator was built without the kernel ") + name);
        }
        *function = state.functions.add({handle, name}, state.next_handle);
    });
}

API int cuFuncGetAttribute(int* value, int attribute, CUfunction function) {
    return call(__func__, Needs::Context, [&](Lock&) {
        State::get().functions.get(function, "function");
        if (attribute != 0) {
            fail(CUDA_ERROR_NOT_SUPPORTED, "the stand-in knows CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK alone");
        }
        *value = int(emulator::THREADS);
    });
}

API int cuOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, CUfunction function, int threads, size_t shared) {
    return call(__func__, Needs::Context, [&](Lock&) { occupancy(blocks, function, threads, shared); });
}

API int cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* blocks, CUfunction function, int threads,
                                                             size_t shared, unsigned) {
    return call(__func__, Needs::Context, [&](Lock&) { occupancy(blocks, function, threads, shared); });
}

API int cuLaunchKernel(CUfunction handle, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,
                       unsigned block_y, unsigned block_z, unsigned shared, CUstream stream, void** arguments,
                       void** extra) {
    return call(__func__, Needs::Context, [&](Lock&) {
        const std::string kernel = State::get().functions.get(handle, "function").name;
        if (grid_x == 0 || grid_y == 0 || grid_z == 0) {
            fail(CUDA_ERROR_INVALID_VALUE, kernel + " is launched with a grid of no blocks");
        }
        if (grid_y != 1 || grid_z != 1 || shared != 0) {
            fail(CUDA_ERROR_INVALID_VALUE, kernel + " takes a grid of one dimension and no dynamic shared memory");
        }
        if (block_x != emulator::THREADS || block_y != 1 || block_z != 1) {
            fail(CUDA_ERROR_INVALID_VALUE, kernel + " is launched with " + std::to_string(block_x) + " x " +
                                               std::to_string(block_y) + " x " + std::to_string(block_z) +
                                               " threads a block; it was compiled for " +
                                               std::to_string(emulator::THREADS));
        }
        if (!arguments || !arguments[0] || extra) {
            fail(CUDA_ERROR_INVALID_VALUE, kernel + " takes one argument, its table or the address of it");
        }
        if (const uint32_t bytes = tpgm_emulator_table_bytes(kernel.c_str())) {
            // By value: copied now, as a driver does.
            auto table = std::make_shared<std::vector<uint64_t>>((bytes + 7) / 8);
            std::memcpy(table->data(), arguments[0], bytes);
            Work work;
            work.what = kernel;
            work.run = [kernel, grid_x, table](Lock& lock) {
                run(lock, kernel, grid_x, reinterpret_cast<uint64_t>(table->data()));
            };
            push(stream_of(stream), std::move(work));
            return;
        }
        uint64_t argument;
        std::memcpy(&argument, arguments[0], sizeof argument);
        Work work;
        work.what = kernel;
        work.device = {{argument, 1}};
        work.run = [kernel, grid_x, argument](Lock& lock) { run(lock, kernel, grid_x, argument); };
        push(stream_of(stream), std::move(work));
    });
}
