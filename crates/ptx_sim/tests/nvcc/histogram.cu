// Counting with atomics in shared and in global memory.

extern "C" __global__ void histogram(const unsigned char *x, int n, unsigned *bins) {
    __shared__ unsigned local[256];
    for (int i = threadIdx.x; i < 256; i += blockDim.x)
        local[i] = 0;
    __syncthreads();
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x)
        atomicAdd(&local[x[i]], 1u);
    __syncthreads();
    for (int i = threadIdx.x; i < 256; i += blockDim.x)
        if (local[i])
            atomicAdd(&bins[i], local[i]);
}

// Every atomic operation once; each result does not depend on the order.
extern "C" __global__ void atomics(const int *x, int n, int *out, unsigned long long *wide) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n)
        return;
    atomicMin(&out[0], x[i]);
    atomicMax(&out[1], x[i]);
    atomicAnd(&out[2], x[i]);
    atomicOr(&out[3], x[i]);
    atomicXor(&out[4], x[i]);
    atomicSub(&out[5], x[i]);
    atomicAdd(&wide[0], (unsigned long long)x[i] * 0x100000001ull);
    atomicMax(&wide[1], (unsigned long long)x[i] << 20);
    atomicInc((unsigned *)&out[6], 999u);
    if (atomicExch(&out[7], 1) == 0)
        out[8] = 42;
    // A lock-free update: multiply by an odd number modulo 2^32 (the product commutes).
    int seen = out[9], assumed;
    do {
        assumed = seen;
        seen = atomicCAS(&out[9], assumed, assumed * (2 * x[i] + 1));
    } while (seen != assumed);
}

// The last block to finish sums what all blocks wrote: fence and counter.
extern "C" __global__ void last_block(const int *x, int n, volatile int *partial, unsigned *ticket, int *total) {
    __shared__ bool last;
    int sum = 0;
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x)
        sum += x[i];
    sum = __reduce_add_sync(0xffffffff, sum);
    if (threadIdx.x == 0) {
        partial[blockIdx.x] = sum;
        __threadfence();
        last = atomicAdd(ticket, 1u) == gridDim.x - 1;
    }
    __syncthreads();
    if (last && threadIdx.x == 0) {
        __threadfence();
        int all = 0;
        for (unsigned b = 0; b < gridDim.x; b++)
            all += partial[b];
        *total = all;
    }
}
