// Sums over a block: shuffles within a warp, shared memory between warps, one atomic a block.

__device__ float warp_sum(float v) {
    for (int offset = 16; offset > 0; offset /= 2)
        v += __shfl_down_sync(0xffffffff, v, offset);
    return v;
}

extern "C" __global__ void block_sum(const float *x, int n, float *sums, float *total) {
    __shared__ float partial[32];
    float v = 0;
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x)
        v += x[i];
    v = warp_sum(v);
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    if (lane == 0)
        partial[warp] = v;
    __syncthreads();
    if (warp == 0) {
        v = lane < blockDim.x / 32 ? partial[lane] : 0;
        v = warp_sum(v);
        if (lane == 0) {
            sums[blockIdx.x] = v;
            atomicAdd(total, v);
        }
    }
}

// Maximum and the index where it first occurs, by butterfly shuffles, one warp a row.
extern "C" __global__ void row_argmax(const float *x, int columns, int *index) {
    const float *row = x + (long long)blockIdx.x * columns;
    float best = -INFINITY;
    int at = 0x7fffffff;
    for (int c = threadIdx.x; c < columns; c += 32)
        if (row[c] > best)
            best = row[c], at = c;
    for (int mask = 16; mask > 0; mask /= 2) {
        float other = __shfl_xor_sync(0xffffffff, best, mask);
        int other_at = __shfl_xor_sync(0xffffffff, at, mask);
        if (other > best || (other == best && other_at < at))
            best = other, at = other_at;
    }
    if (threadIdx.x == 0)
        index[blockIdx.x] = at;
}

// Exclusive scan of 0/1 flags with ballots: out[i] = number of set flags before i, within each warp.
extern "C" __global__ void warp_rank(const int *flags, int *rank, int *count) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    unsigned lane = threadIdx.x % 32;
    unsigned votes = __ballot_sync(0xffffffff, flags[i] != 0);
    rank[i] = __popc(votes & ((1u << lane) - 1));
    if (lane == 0)
        count[i / 32] = __popc(votes);
}

// Number of lanes of the warp that hold the same key.
extern "C" __global__ void same_key(const int *keys, int *same) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    same[i] = __popc(__match_any_sync(0xffffffff, keys[i]));
}

// Integer reductions of the warp in one instruction.
extern "C" __global__ void warp_extremes(const int *x, int *out) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    int low = __reduce_min_sync(0xffffffff, x[i]);
    int high = __reduce_max_sync(0xffffffff, x[i]);
    unsigned sum = __reduce_add_sync(0xffffffff, (unsigned)x[i]);
    if (threadIdx.x % 32 == 0)
        out[i / 32 * 3] = low, out[i / 32 * 3 + 1] = high, out[i / 32 * 3 + 2] = (int)sum;
}
