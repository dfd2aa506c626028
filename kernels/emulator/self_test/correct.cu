// Kernels that use every built-in as they should. `cargo xtask emulate --self-test` knows what each has to write.
#include "buffers.cuh"

TPGM_KERNEL places(const Buffers* buffers) {
    output<uint4>(buffers)[global_thread()] = make_uint4(threadIdx.x, blockIdx.x, blockDim.x, gridDim.x);
}
TPGM_REGISTER(places)

// Reverses the block's part through shared memory, then all and any of three predicates.
TPGM_KERNEL barriers(const Buffers* buffers) {
    __shared__ uint32_t values[THREADS];
    values[threadIdx.x] = global_thread();
    __syncthreads();
    uint32_t value = values[THREADS - 1 - threadIdx.x];
    int some = __syncthreads_or(threadIdx.x == 5);
    int none = __syncthreads_or(0);
    int all = __syncthreads_and(1);
    int most = __syncthreads_and(threadIdx.x != 5);
    uint32_t results = (some ? 1 : 0) + (none ? 2 : 0) + (all ? 4 : 0) + (most ? 8 : 0);
    output<uint2>(buffers)[global_thread()] = make_uint2(value, results);
}
TPGM_REGISTER(barriers)

// Threads that have ended are not waited for.
TPGM_KERNEL early_end(const Buffers* buffers) {
    __shared__ uint32_t sum;
    if (threadIdx.x == 0) sum = 0;
    __syncthreads();
    if (threadIdx.x % 2 == 1) return;
    atomicAdd(&sum, threadIdx.x);
    __syncthreads();
    output<uint32_t>(buffers)[global_thread()] = sum;
}
TPGM_REGISTER(early_end)

// The sum over each warp four ways, a broadcast, a ballot, and words passed within a half of the warp.
TPGM_KERNEL warps(const Buffers* buffers) {
    __shared__ uint32_t words[THREADS];
    int whole = static_cast<int>(threadIdx.x);
    float single = static_cast<float>(threadIdx.x);
    double wide = threadIdx.x;
    unsigned long long bits = 1ull << threadIdx.x % WARP;
    for (int distance = WARP / 2; distance > 0; distance /= 2) {
        whole += __shfl_xor_sync(0xffffffffu, whole, distance);
        single += __shfl_xor_sync(0xffffffffu, single, distance);
        wide += __shfl_xor_sync(0xffffffffu, wide, distance);
        bits |= __shfl_xor_sync(0xffffffffu, bits << 1, distance);
    }
    int third = __shfl_sync(0xffffffffu, static_cast<int>(threadIdx.x), 3);
    unsigned ballot = __ballot_sync(0xffffffffu, threadIdx.x % 3 == 0);
    unsigned half = threadIdx.x % WARP < WARP / 2 ? 0x0000ffffu : 0xffff0000u;
    if (half == 0x0000ffffu) {
        words[threadIdx.x] = threadIdx.x;
        __syncwarp(half);
        whole += static_cast<int>(words[threadIdx.x ^ 1u]);
    }
    __syncwarp();
    double* out = output<double>(buffers) + global_thread() * 6;
    out[0] = whole;
    out[1] = single;
    out[2] = wide;
    out[3] = static_cast<double>(bits);
    out[4] = third;
    out[5] = ballot;
}
TPGM_REGISTER(warps)

// Every thread adds 1, and offers its number as the smallest and the largest. The sum of what `atomicExch` gives out, with
// what is left, is that of all numbers put in.
TPGM_KERNEL atomics(const Buffers* buffers) {
    __shared__ unsigned of_block;
    unsigned long long* out = output<unsigned long long>(buffers);
    if (threadIdx.x == 0) of_block = 0;
    __syncthreads();
    unsigned long long number = global_thread();
    atomicAdd(&of_block, 1u);
    atomicAdd(out, 1ull);
    atomicMin(out + 1, number);
    atomicMax(out + 2, number);
    atomicAdd(out + 4, atomicExch(out + 3, number));
    __syncthreads();
    if (threadIdx.x == 0) atomicAdd(out + 5, static_cast<unsigned long long>(of_block));
}
TPGM_REGISTER(atomics)

// Copies 16 bytes a thread four times over, each time as another type.
TPGM_KERNEL vectors(const Buffers* buffers) {
    uint32_t i = global_thread(), n = all_threads();
    float4* floats = output<float4>(buffers);
    floats[i] = __ldcs(input<float4>(buffers) + i);
    double2 pair = input<double2>(buffers)[i];
    __stcs(output<double2>(buffers) + n + i, make_double2(pair.x, pair.y));
    uint4 words = input<uint4>(buffers)[i];
    output<uint2>(buffers)[2 * (2 * n + i)] = make_uint2(words.x, words.y);
    output<uint2>(buffers)[2 * (2 * n + i) + 1] = make_uint2(words.z, words.w);
    for (uint32_t half = 0; half < 2; ++half) {
        ushort4 shorts = __ldcs(input<ushort4>(buffers) + 2 * i + half);
        __stcs(output<ushort4>(buffers) + 2 * (3 * n + i) + half, make_ushort4(shorts.x, shorts.y, shorts.z, shorts.w));
    }
}
TPGM_REGISTER(vectors)

// Of three numbers each: functions of f64, and of f32, and a product and sum that must not be one operation.
TPGM_KERNEL mathematics(const Buffers* buffers) {
    for (uint64_t i = global_thread(); i < buffers->count; i += all_threads()) {
        const double* in = input<double>(buffers) + 3 * i;
        double x = in[0], y = in[1], z = in[2];
        float a = static_cast<float>(x), b = static_cast<float>(y), c = static_cast<float>(z);
        double* out = output<double>(buffers) + 16 * i;
        out[0] = fma(x, y, z);
        out[1] = x * y + z;
        out[2] = sqrt(fabs(x));
        out[3] = pow(fabs(x), y);
        out[4] = fmin(x, y);
        out[5] = fmax(x, y);
        out[6] = isfinite(x) ? 1.0 : 0.0;
        out[7] = __longlong_as_double(__double_as_longlong(x));
        out[8] = fma(a, b, c);
        out[9] = a * b + c;
        out[10] = sqrtf(fabsf(a));
        out[11] = fmin(a, b);
        out[12] = fmax(a, b);
        out[13] = isfinite(a) ? 1.0 : 0.0;
        out[14] = __uint_as_float(__float_as_uint(a));
        out[15] = sqrt(fabs(a));
    }
}
TPGM_REGISTER(mathematics)

// Blocks take tickets; each waits for the ticket before, and adds to what that block wrote.
TPGM_KERNEL tickets(const Buffers* buffers) {
    __shared__ uint32_t ticket;
    uint32_t* counter = output<uint32_t>(buffers);
    uint32_t* done = counter + 1;
    uint32_t* sums = counter + 2;
    if (threadIdx.x == 0) {
        ticket = atomicAdd(counter, 1u);
        while (atomicAdd(done, 0u) < ticket) pause_polling();
    }
    __syncthreads();
    __threadfence();
    uint32_t before = ticket == 0 ? 0 : sums[(ticket - 1) * THREADS + (threadIdx.x + 1) % THREADS];
    sums[ticket * THREADS + threadIdx.x] = before + 1;
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) atomicAdd(done, 1u);
}
TPGM_REGISTER(tickets)

#ifndef __CUDACC__
// All of f16 to f32; then `count` numbers of f32 to f16.
TPGM_KERNEL halves(const Buffers* buffers) {
    float* wide = output<float>(buffers);
    for (uint32_t bits = global_thread(); bits < 65536; bits += all_threads()) {
        wide[bits] = emulator_half_to_float(static_cast<uint16_t>(bits));
    }
    uint16_t* narrow = reinterpret_cast<uint16_t*>(wide + 65536);
    for (uint64_t i = global_thread(); i < buffers->count; i += all_threads()) {
        narrow[i] = emulator_float_to_half(input<float>(buffers)[i]);
    }
}
TPGM_REGISTER(halves)
#endif
