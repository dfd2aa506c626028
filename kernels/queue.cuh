// The queue of the moving phase: one launch in which later work waits for earlier work.
//
// Blocks take tickets, and with a ticket an item of the queue. An item may wait for items of lower tickets only: a tensor is
// advanced piece by piece, whoever finishes its last piece settles it (its norms are complete then), and only then its
// second pass may run, whose items stand behind all its pieces in the queue, with other work between. The lowest ticket that
// is not finished never waits, so any number of running blocks gets to the end, also fewer than were launched. A second pass
// comes soon enough after the first to find the tensor in the L2 cache.
#pragma once

#include "tables.cuh"

// `Work` has static members `advance(job, item)`, `settle(job, tensor)`, `pull(job, item)`, which whole blocks call.
template <class Work> __device__ inline void run_queue(const Job& job) {
    __shared__ uint32_t ticket, last;
    if (threadIdx.x == 0) ticket = atomicAdd(&job.counters->ticket, 1u);
    while (true) {
        __syncthreads();
        uint32_t mine = ticket;
        if (mine >= job.item_count) break;
        // The next ticket is asked for now, because the answer takes a while.
        uint32_t next = 0;
        if (threadIdx.x == 0) next = atomicAdd(&job.counters->ticket, 1u);
        const Item item = job.items[mine];
        Progress& progress = job.progress[item.tensor];
        bool settles = item.kind == SETTLE;
        if (item.kind == ADVANCE) {
            Work::advance(job, item);
            __syncthreads();
            if (threadIdx.x == 0) {
                fence();
                last = atomicAdd(&progress.arrived, 1u) == job.tensors[item.tensor].pieces - 1;
                if (last) fence();
            }
            __syncthreads();
            settles = last != 0;
        }
        if (settles) {
            Work::settle(job, item.tensor);
            __syncthreads();
            if (threadIdx.x == 0) {
                fence();
                atomicExch(&progress.settled, 1u);
            }
        }
        if (item.kind == PULL) {
            if (threadIdx.x == 0) {
                while (atomicAdd(&progress.settled, 0u) == 0u) pause_polling();
                fence();
            }
            __syncthreads();
            Work::pull(job, item);
        }
        __syncthreads();
        if (threadIdx.x == 0) ticket = next;
    }
    // Whoever leaves last puts the counters back for the next launch.
    if (threadIdx.x == 0) {
        fence();
        last = atomicAdd(&job.counters->exited, 1u) == gridDim.x - 1;
        if (last) fence();
    }
    __syncthreads();
    if (!last) return;
    for (uint32_t t = threadIdx.x; t < job.tensor_count; t += THREADS) {
        job.progress[t].arrived = 0;
        job.progress[t].settled = 0;
    }
    if (threadIdx.x == 0) {
        job.counters->ticket = 0;
        job.counters->exited = 0;
    }
}
