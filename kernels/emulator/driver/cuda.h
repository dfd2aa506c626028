// The part of CUDA's driver interface that the stand-in has, declared by hand: no header of CUDA is needed.
#pragma once

#include <cstddef>
#include <cstdint>

// Codes and what they say, as in CUDA's manual.
#define CUDA_CODES(CODE)                                                                                               \
    CODE(CUDA_SUCCESS, 0, "no error")                                                                                  \
    CODE(CUDA_ERROR_INVALID_VALUE, 1, "invalid argument")                                                              \
    CODE(CUDA_ERROR_OUT_OF_MEMORY, 2, "out of memory")                                                                 \
    CODE(CUDA_ERROR_NOT_INITIALIZED, 3, "initialization error")                                                        \
    CODE(CUDA_ERROR_INVALID_DEVICE, 101, "invalid device ordinal")                                                     \
    CODE(CUDA_ERROR_INVALID_IMAGE, 200, "device kernel image is invalid")                                              \
    CODE(CUDA_ERROR_INVALID_CONTEXT, 201, "invalid device context")                                                    \
    CODE(CUDA_ERROR_NO_BINARY_FOR_GPU, 209, "no kernel image is available for execution on the device")                \
    CODE(CUDA_ERROR_INVALID_HANDLE, 400, "invalid resource handle")                                                    \
    CODE(CUDA_ERROR_ILLEGAL_STATE, 401, "the operation cannot be performed in the present state")                      \
    CODE(CUDA_ERROR_NOT_FOUND, 500, "named symbol not found")                                                          \
    CODE(CUDA_ERROR_NOT_READY, 600, "device not ready")                                                                \
    CODE(CUDA_ERROR_ILLEGAL_ADDRESS, 700, "an illegal memory access was encountered")                                  \
    CODE(CUDA_ERROR_CONTEXT_IS_DESTROYED, 709, "context is destroyed")                                                 \
    CODE(CUDA_ERROR_LAUNCH_FAILED, 719, "unspecified launch failure")                                                  \
    CODE(CUDA_ERROR_NOT_SUPPORTED, 801, "operation not supported")                                                     \
    CODE(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, 900, "operation not permitted when stream is capturing")               \
    CODE(CUDA_ERROR_STREAM_CAPTURE_INVALIDATED, 901, "operation failed due to a previous error during capture")        \
    CODE(CUDA_ERROR_STREAM_CAPTURE_MERGE, 902, "operation would result in a merge of separate capture sequences")      \
    CODE(CUDA_ERROR_STREAM_CAPTURE_UNMATCHED, 903, "capture was not ended in the same stream as it began")             \
    CODE(CUDA_ERROR_STREAM_CAPTURE_UNJOINED, 904, "capturing stream has unjoined work")                                \
    CODE(CUDA_ERROR_STREAM_CAPTURE_ISOLATION, 905, "dependency created on uncaptured work in another stream")          \
    CODE(CUDA_ERROR_STREAM_CAPTURE_IMPLICIT, 906, "operation would make the legacy stream depend on a capture")        \
    CODE(CUDA_ERROR_CAPTURED_EVENT, 907, "operation not permitted on an event last recorded in a capturing stream")    \
    CODE(CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD, 908, "capture was ended by another thread than began it")

enum CUresult : int {
#define CODE(name, number, text) name = number,
    CUDA_CODES(CODE)
#undef CODE
};

using CUdevice = int;
using CUdeviceptr = uint64_t;
using CUcontext = void*;
using CUstream = void*;
using CUevent = void*;
using CUgraph = void*;
using CUgraphExec = void*;
using CUmodule = void*;
using CUfunction = void*;
using CUmemoryPool = void*;
using CUhostFn = void (*)(void*);

// Streams that every context has.
#define CU_STREAM_LEGACY (reinterpret_cast<CUstream>(1))
#define CU_STREAM_PER_THREAD (reinterpret_cast<CUstream>(2))

enum : unsigned { CU_STREAM_NON_BLOCKING = 1, CU_EVENT_DISABLE_TIMING = 2 };
enum CUstreamCaptureMode : int { CAPTURE_GLOBAL = 0, CAPTURE_THREAD_LOCAL = 1, CAPTURE_RELAXED = 2 };
enum CUmemPool_attribute : int {
    POOL_REUSE_FOLLOW_EVENT_DEPENDENCIES = 1,
    POOL_REUSE_ALLOW_OPPORTUNISTIC = 2,
    POOL_REUSE_ALLOW_INTERNAL_DEPENDENCIES = 3,
    POOL_RELEASE_THRESHOLD = 4,
    POOL_RESERVED_CURRENT = 5,
    POOL_RESERVED_HIGH = 6,
    POOL_USED_CURRENT = 7,
    POOL_USED_HIGH = 8,
};

#define API extern "C" __attribute__((visibility("default")))

API int cuInit(unsigned flags);
API int cuDriverGetVersion(int* version);
API int cuGetErrorName(int code, const char** name);
API int cuGetErrorString(int code, const char** text);
API int cuGetProcAddress_v2(const char* name, void** function, int version, uint64_t flags, int* status);

API int cuDeviceGet(CUdevice* device, int ordinal);
API int cuDeviceGetCount(int* count);
API int cuDeviceGetName(char* name, int capacity, CUdevice device);
API int cuDeviceGetAttribute(int* value, int attribute, CUdevice device);
API int cuDeviceTotalMem_v2(size_t* bytes, CUdevice device);
API int cuDeviceGetDefaultMemPool(CUmemoryPool* pool, CUdevice device);
API int cuDeviceGetMemPool(CUmemoryPool* pool, CUdevice device);
API int cuMemPoolSetAttribute(CUmemoryPool pool, int attribute, void* value);
API int cuMemPoolGetAttribute(CUmemoryPool pool, int attribute, void* value);
API int cuMemPoolTrimTo(CUmemoryPool pool, size_t bytes);

API int cuDevicePrimaryCtxRetain(CUcontext* context, CUdevice device);
API int cuDevicePrimaryCtxRelease_v2(CUdevice device);
API int cuCtxGetCurrent(CUcontext* context);
API int cuCtxSetCurrent(CUcontext context);
API int cuCtxGetDevice(CUdevice* device);
API int cuCtxSynchronize();

API int cuStreamCreate(CUstream* stream, unsigned flags);
API int cuStreamDestroy_v2(CUstream stream);
API int cuStreamSynchronize(CUstream stream);
API int cuStreamQuery(CUstream stream);
API int cuStreamWaitEvent(CUstream stream, CUevent event, unsigned flags);
API int cuLaunchHostFunc(CUstream stream, CUhostFn function, void* argument);

API int cuEventCreate(CUevent* event, unsigned flags);
API int cuEventDestroy_v2(CUevent event);
API int cuEventRecord(CUevent event, CUstream stream);
API int cuEventSynchronize(CUevent event);
API int cuEventQuery(CUevent event);
API int cuEventElapsedTime(float* milliseconds, CUevent start, CUevent end);
API int cuEventElapsedTime_v2(float* milliseconds, CUevent start, CUevent end);

API int cuStreamBeginCapture_v2(CUstream stream, int mode);
API int cuStreamEndCapture(CUstream stream, CUgraph* graph);
API int cuStreamIsCapturing(CUstream stream, int* status);
API int cuGraphInstantiateWithFlags(CUgraphExec* executable, CUgraph graph, uint64_t flags);
API int cuGraphUpload(CUgraphExec executable, CUstream stream);
API int cuGraphLaunch(CUgraphExec executable, CUstream stream);
API int cuGraphDestroy(CUgraph graph);
API int cuGraphExecDestroy(CUgraphExec executable);

API int cuMemGetInfo_v2(size_t* free, size_t* total);
API int cuMemAlloc_v2(CUdeviceptr* memory, size_t bytes);
API int cuMemFree_v2(CUdeviceptr memory);
API int cuMemAllocAsync(CUdeviceptr* memory, size_t bytes, CUstream stream);
API int cuMemFreeAsync(CUdeviceptr memory, CUstream stream);
API int cuMemHostAlloc(void** memory, size_t bytes, unsigned flags);
API int cuMemFreeHost(void* memory);
API int cuMemsetD8Async(CUdeviceptr to, unsigned char value, size_t bytes, CUstream stream);
API int cuMemsetD8_v2(CUdeviceptr to, unsigned char value, size_t bytes);
API int cuMemcpyHtoDAsync_v2(CUdeviceptr to, const void* from, size_t bytes, CUstream stream);
API int cuMemcpyHtoD_v2(CUdeviceptr to, const void* from, size_t bytes);
API int cuMemcpyDtoHAsync_v2(void* to, CUdeviceptr from, size_t bytes, CUstream stream);
API int cuMemcpyDtoH_v2(void* to, CUdeviceptr from, size_t bytes);
API int cuMemcpyDtoDAsync_v2(CUdeviceptr to, CUdeviceptr from, size_t bytes, CUstream stream);
API int cuMemcpyDtoD_v2(CUdeviceptr to, CUdeviceptr from, size_t bytes);

API int cuModuleLoadData(CUmodule* module, const void* image);
API int cuModuleUnload(CUmodule module);
API int cuModuleGetFunction(CUfunction* function, CUmodule module, const char* name);
API int cuFuncGetAttribute(int* value, int attribute, CUfunction function);
API int cuOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, CUfunction function, int threads, size_t shared);
API int cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* blocks, CUfunction function, int threads,
                                                             size_t shared, unsigned flags);
API int cuLaunchKernel(CUfunction function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,
                       unsigned block_y, unsigned block_z, unsigned shared, CUstream stream, void** arguments,
                       void** extra);

// The stand-in's own: how often the calling thread has called a function of the driver, by its name.
API uint64_t tpgm_driver_calls(const char* name);
// Mistakes found so far that a driver would not tell of, in all threads.
API uint64_t tpgm_driver_findings();
