// cp.async double buffer: while tile i is summed, tile i + 1 is on its way.

#include <cstdint>

// out[i] = sum over tiles t of (t + 1) * x[t * 256 + i']; i' = 255 - i, so that threads read what others copied.
extern "C" __global__ void weighted_sum(const float *x, int tiles, float *out) {
    __shared__ __align__(16) float stage[2][256];
    auto copy = [&](int tile) {
        if (threadIdx.x < 64) {
            uint32_t to = (uint32_t)__cvta_generic_to_shared(&stage[tile % 2][threadIdx.x * 4]);
            const float *from = x + tile * 256 + threadIdx.x * 4;
            asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(from) : "memory");
        }
        asm volatile("cp.async.commit_group;" ::: "memory");
    };
    float sum = 0;
    copy(0);
    for (int tile = 0; tile < tiles; tile++) {
        if (tile + 1 < tiles) {
            copy(tile + 1);
            asm volatile("cp.async.wait_group 1;" ::: "memory");
        } else {
            asm volatile("cp.async.wait_all;" ::: "memory");
        }
        __syncthreads();
        sum += (tile + 1) * stage[tile % 2][255 - threadIdx.x];
        __syncthreads();
    }
    out[threadIdx.x] = sum;
}
