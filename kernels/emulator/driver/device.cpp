// The device: an H100 with few multiprocessors, so that a launch has few blocks.

#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "driver.h"

namespace driver {

namespace {

// By CUDA's number of the attribute; all others are 0.
std::map<int, int> attributes() {
    std::map<int, int> values = {
        {1, 1024},         // threads of a block
        {2, 1024},         // in x,
        {3, 1024},         // y
        {4, 64},           // and z
        {5, 0x7fffffff},   // blocks of a grid in x,
        {6, 65535},        // y
        {7, 65535},        // and z
        {8, 49152},        // shared memory of a block
        {10, 32},          // threads of a warp
        {12, 65536},       // registers of a block
        {13, 1980000},     // clock in kHz
        {16, 2},           // multiprocessors
        {36, 2619000},     // clock of the memory in kHz
        {37, 5120},        // width of the bus
        {38, 50 << 20},    // L2 cache
        {39, 2048},        // threads of a multiprocessor
        {41, 1},           // unified addresses
        {75, 9},           // compute capability,
        {76, 0},           // major and minor
        {81, 233472},      // shared memory of a multiprocessor
        {82, 65536},       // registers of a multiprocessor
        {87, 2},           // f32 operations for one of f64
        {97, 232448},      // shared memory of a block that asks for it
        {106, 32},         // blocks of a multiprocessor
        {115, 1},          // memory pools
    };
    // `TPGM_DRIVER_ATTRIBUTES="75=8,76=6"` stands for another device.
    const char* text = std::getenv("TPGM_DRIVER_ATTRIBUTES");
    for (const std::string words = text ? text : ""; text && *text != '\0';) {
        int number = 0, value = 0, length = 0;
        if (std::sscanf(text, "%d=%d%n", &number, &value, &length) != 2 ||
            (text[length] != ',' && text[length] != '\0')) {
            std::fprintf(stderr, "libcuda stand-in: TPGM_DRIVER_ATTRIBUTES is no list like 75=8,76=6: %s\n",
                         words.c_str());
            std::abort();
        }
        values[number] = value;
        text += text[length] == ',' ? length + 1 : length;
    }
    return values;
}

void* const POOL = reinterpret_cast<void*>(0x99000);

void use_pool(CUmemoryPool pool) {
    if (pool != POOL) {
        fail(CUDA_ERROR_INVALID_HANDLE, "there is no such memory pool");
    }
}

} // namespace

void use_device(CUdevice device) {
    if (device != 0) {
        fail(CUDA_ERROR_INVALID_DEVICE, "there is one device, number 0");
    }
}

int attribute(int number) {
    static const std::map<int, int> values = attributes();
    const auto found = values.find(number);
    return found == values.end() ? 0 : found->second;
}

} // namespace driver

using namespace driver;

API int cuDriverGetVersion(int* version) {
    *version = 13000;
    return CUDA_SUCCESS;
}

API int cuDeviceGet(CUdevice* device, int ordinal) {
    return call(__func__, Needs::Init, [&](Lock&) {
        use_device(ordinal);
        *device = ordinal;
    });
}

API int cuDeviceGetCount(int* count) {
    return call(__func__, Needs::Init, [&](Lock&) { *count = 1; });
}

API int cuDeviceGetName(char* name, int capacity, CUdevice device) {
    return call(__func__, Needs::Init, [&](Lock&) {
        use_device(device);
        std::snprintf(name, size_t(capacity), "stand-in for an NVIDIA GPU");
    });
}

API int cuDeviceGetAttribute(int* value, int number, CUdevice device) {
    return call(__func__, Needs::Init, [&](Lock&) {
        use_device(device);
        *value = attribute(number);
    });
}

API int cuDeviceTotalMem_v2(size_t* bytes, CUdevice device) {
    return call(__func__, Needs::Init, [&](Lock&) {
        use_device(device);
        *bytes = size_t(80) << 30;
    });
}

API int cuDeviceGetDefaultMemPool(CUmemoryPool* pool, CUdevice device) {
    return call(__func__, Needs::Init, [&](Lock&) {
        use_device(device);
        *pool = POOL;
    });
}

API int cuDeviceGetMemPool(CUmemoryPool* pool, CUdevice device) { return cuDeviceGetDefaultMemPool(pool, device); }

API int cuMemPoolSetAttribute(CUmemoryPool handle, int attribute, void* value) {
    return call(__func__, Needs::Init, [&](Lock&) {
        use_pool(handle);
        Pool& pool = State::get().pool;
        switch (attribute) {
        case POOL_REUSE_FOLLOW_EVENT_DEPENDENCIES:
        case POOL_REUSE_ALLOW_OPPORTUNISTIC:
        case POOL_REUSE_ALLOW_INTERNAL_DEPENDENCIES:
            std::memcpy(&pool.reuse[attribute - 1], value, sizeof(int));
            return;
        case POOL_RELEASE_THRESHOLD:
            std::memcpy(&pool.threshold, value, sizeof(uint64_t));
            return;
        case POOL_RESERVED_HIGH:
        case POOL_USED_HIGH: {
            uint64_t number;
            std::memcpy(&number, value, sizeof number);
            if (number != 0) {
                fail(CUDA_ERROR_INVALID_VALUE, "a high-water mark can be set to 0 alone");
            }
            (attribute == POOL_USED_HIGH ? pool.used_high : pool.reserved_high) = 0;
            return;
        }
        default:
            fail(CUDA_ERROR_INVALID_VALUE, "attribute " + std::to_string(attribute) + " of a pool cannot be set");
        }
    });
}

API int cuMemPoolGetAttribute(CUmemoryPool handle, int attribute, void* value) {
    return call(__func__, Needs::Init, [&](Lock&) {
        use_pool(handle);
        const Pool& pool = State::get().pool;
        const uint64_t numbers[] = {pool.threshold, pool.reserved, pool.reserved_high, pool.used, pool.used_high};
        if (attribute >= POOL_REUSE_FOLLOW_EVENT_DEPENDENCIES && attribute <= POOL_REUSE_ALLOW_INTERNAL_DEPENDENCIES) {
            std::memcpy(value, &pool.reuse[attribute - 1], sizeof(int));
        } else if (attribute >= POOL_RELEASE_THRESHOLD && attribute <= POOL_USED_HIGH) {
            std::memcpy(value, &numbers[attribute - POOL_RELEASE_THRESHOLD], sizeof(uint64_t));
        } else {
            fail(CUDA_ERROR_INVALID_VALUE, "a pool has no attribute " + std::to_string(attribute));
        }
    });
}

API int cuMemPoolTrimTo(CUmemoryPool pool, size_t bytes) {
    return call(__func__, Needs::Init, [&](Lock&) {
        use_pool(pool);
        trim_pool(bytes);
    });
}
