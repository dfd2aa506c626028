// Names that programs look up in the driver's library. Those that nothing else defines are here, and say what is missing.
// `cuda.h` is not included: its functions have types, these are names alone.

#include <atomic>
#include <cstdio>

namespace {

constexpr int NOT_SUPPORTED = 801;

// Says so once for each name.
int not_there(const char* name, std::atomic<bool>& said) {
    if (!said.exchange(true)) {
        std::fprintf(stderr, "libcuda stand-in: %s is not there: error %d, CUDA_ERROR_NOT_SUPPORTED\n", name,
                     NOT_SUPPORTED);
    }
    return NOT_SUPPORTED;
}

} // namespace

#define SYMBOL(name)                                                                                                   \
    extern "C" __attribute__((visibility("default"), weak)) int name() {                                               \
        static std::atomic<bool> said{false};                                                                          \
        return not_there(#name, said);                                                                                 \
    }
#include "symbols.inc"
