// Kernels with one mistake each, which a sanitizer or the emulator has to find.
#include "buffers.cuh"

TPGM_KERNEL missing_barrier(const Buffers* buffers) {
    __shared__ uint32_t values[THREADS];
    values[threadIdx.x] = threadIdx.x;
    output<uint32_t>(buffers)[global_thread()] = values[THREADS - 1 - threadIdx.x];
}
TPGM_REGISTER(missing_barrier)

// The second round writes while slow threads still read what the first wrote.
TPGM_KERNEL missing_second_barrier(const Buffers* buffers) {
    __shared__ uint32_t values[THREADS];
    uint32_t sum = 0;
    for (uint32_t round = 0; round < 2; ++round) {
        values[threadIdx.x] = round;
        __syncthreads();
        sum += values[THREADS - 1 - threadIdx.x];
    }
    output<uint32_t>(buffers)[global_thread()] = sum;
}
TPGM_REGISTER(missing_second_barrier)

// A shuffle waits for all lanes but orders no memory.
TPGM_KERNEL shuffle_as_barrier(const Buffers* buffers) {
    __shared__ uint32_t values[THREADS];
    values[threadIdx.x] = threadIdx.x;
    uint32_t zero = __shfl_xor_sync(0xffffffffu, 0u, 1);
    output<uint32_t>(buffers)[global_thread()] = values[threadIdx.x ^ 1u] + zero;
}
TPGM_REGISTER(shuffle_as_barrier)

// The second ticket reads what the first wrote, told by an atomic: without a fence before (1) or after (2) it.
template <int MISSING> __device__ inline void hand_over(const Buffers* buffers) {
    __shared__ uint32_t ticket;
    uint32_t* counter = output<uint32_t>(buffers);
    uint32_t* done = counter + 1;
    uint32_t* data = counter + 2;
    if (threadIdx.x == 0) {
        ticket = atomicAdd(counter, 1u);
        if (ticket == 1) {
            while (atomicAdd(done, 0u) == 0u) pause_polling();
            if (MISSING != 2) __threadfence();
            data[1] = data[0];
        } else if (ticket == 0) {
            data[0] = 7;
            if (MISSING != 1) __threadfence();
            atomicExch(done, 1u);
        }
    }
}
TPGM_KERNEL missing_release(const Buffers* buffers) { hand_over<1>(buffers); }
TPGM_REGISTER(missing_release)
TPGM_KERNEL missing_acquire(const Buffers* buffers) { hand_over<2>(buffers); }
TPGM_REGISTER(missing_acquire)
TPGM_KERNEL complete_hand_over(const Buffers* buffers) { hand_over<0>(buffers); }
TPGM_REGISTER(complete_hand_over)

TPGM_KERNEL race_of_blocks(const Buffers* buffers) { output<uint32_t>(buffers)[threadIdx.x] = blockIdx.x; }
TPGM_REGISTER(race_of_blocks)

// `count` is one more than there are elements.
TPGM_KERNEL global_overrun(const Buffers* buffers) {
    for (uint64_t i = threadIdx.x; i < buffers->count; i += THREADS) output<uint32_t>(buffers)[i] = 1;
}
TPGM_REGISTER(global_overrun)

TPGM_KERNEL shared_overrun(const Buffers* buffers) {
    __shared__ uint32_t values[THREADS];
    for (uint64_t i = threadIdx.x; i < buffers->count; i += THREADS) values[i] = 1;
    __syncthreads();
    output<uint32_t>(buffers)[global_thread()] = values[threadIdx.x];
}
TPGM_REGISTER(shared_overrun)

// The bounds of the array are not in sight where it is written.
__device__ __attribute__((noinline)) void fill(volatile uint32_t* values, uint64_t count) {
    for (uint64_t i = threadIdx.x; i < count; i += THREADS) values[i] = 1;
}
TPGM_KERNEL shared_overrun_by_pointer(const Buffers* buffers) {
    __shared__ uint32_t values[THREADS];
    fill(values, buffers->count);
    __syncthreads();
    output<uint32_t>(buffers)[global_thread()] = values[threadIdx.x];
}
TPGM_REGISTER(shared_overrun_by_pointer)

TPGM_KERNEL misaligned(const Buffers* buffers) {
    const float* in = input<float>(buffers) + 1;
    output<float4>(buffers)[threadIdx.x] = reinterpret_cast<const float4*>(in)[threadIdx.x];
}
TPGM_REGISTER(misaligned)

TPGM_KERNEL divergent_barrier(const Buffers* buffers) {
    if (threadIdx.x % WARP == 3) __syncwarp();
    else __syncthreads();
    output<uint32_t>(buffers)[global_thread()] = 1;
}
TPGM_REGISTER(divergent_barrier)

TPGM_KERNEL divergent_kinds(const Buffers* buffers) {
    if (threadIdx.x == 3) __syncthreads();
    else output<int>(buffers)[global_thread()] = __syncthreads_or(1);
}
TPGM_REGISTER(divergent_kinds)

TPGM_KERNEL divergent_warp(const Buffers* buffers) {
    uint32_t value = threadIdx.x % WARP == 3 ? __ballot_sync(0xffffffffu, 1) : __shfl_sync(0xffffffffu, 1u, 0);
    output<uint32_t>(buffers)[global_thread()] = value;
}
TPGM_REGISTER(divergent_warp)

// The lower half takes a word of the upper half, which takes no part.
TPGM_KERNEL absent_lane(const Buffers* buffers) {
    uint32_t value = 0;
    if (threadIdx.x % WARP < WARP / 2) value = __shfl_xor_sync(0x0000ffffu, threadIdx.x, WARP / 2);
    output<uint32_t>(buffers)[global_thread()] = value;
}
TPGM_REGISTER(absent_lane)

// Ticket 0 waits for ticket 1.
TPGM_KERNEL higher_ticket(const Buffers* buffers) {
    if (threadIdx.x != 0) return;
    uint32_t* counter = output<uint32_t>(buffers);
    if (atomicAdd(counter, 1u) == 0u) {
        while (atomicAdd(counter + 1, 0u) == 0u) pause_polling();
    } else {
        while (atomicAdd(counter + 2, 0u) == 0u) pause_polling();
        atomicExch(counter + 1, 1u);
    }
    atomicExch(counter + 2, 1u);
}
TPGM_REGISTER(higher_ticket)
