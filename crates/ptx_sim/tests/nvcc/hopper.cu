// Hopper: boxes through TMA into swizzled shared memory, mbarriers, wgmma. One warpgroup, one 64x64 tile.

#include <cstdint>

struct alignas(64) TensorMap {
    uint64_t words[16];
};

constexpr int STAGES = 2;
constexpr uint32_t BOX = 64 * 128; // 64 rows of 128 bytes of K

__device__ uint32_t shared_address(const void *p) { return (uint32_t)__cvta_generic_to_shared(p); }

__device__ void wait(uint32_t barrier, uint32_t parity) {
    asm volatile("{\n.reg .pred done;\n"
                 "WAIT:\nmbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
                 "@!done bra WAIT;\n}" ::"r"(barrier), "r"(parity)
                 : "memory");
}

__device__ void load(uint32_t to, const TensorMap *map, int k, int row, uint32_t barrier) {
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];" ::
                     "r"(to), "l"(map), "r"(k), "r"(row), "r"(barrier)
                 : "memory");
}

// K-major, 128-byte swizzle, groups of 8 rows 1024 bytes apart.
__device__ uint64_t descriptor(uint32_t address) {
    return (uint64_t)(address >> 4 & 0x3fff) | 1ull << 16 | (uint64_t)(1024 >> 4) << 32 | 1ull << 62;
}

// D[64][64] = A[64][K] * B[64][K]^T, e4m3, K a multiple of 128; rows of A and B from `row_a`, `row_b`.
extern "C" __global__ void __launch_bounds__(128)
    tile_e4m3(const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap b, int K, int row_a, int row_b, float *d) {
    extern __shared__ __align__(1024) uint8_t stages[];
    __shared__ __align__(8) uint64_t full[STAGES];
    uint32_t base = shared_address(stages);
    int steps = K / 128;
    if (threadIdx.x == 0) {
        for (int s = 0; s < STAGES; s++)
            asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(shared_address(&full[s])));
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
    __syncthreads();
    auto fill = [&](int step) {
        uint32_t stage = base + step % STAGES * 2 * BOX, barrier = shared_address(&full[step % STAGES]);
        asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(2 * BOX) : "memory");
        load(stage, &a, step * 128, row_a, barrier);
        load(stage + BOX, &b, step * 128, row_b, barrier);
    };
    if (threadIdx.x == 0)
        for (int s = 0; s < STAGES && s < steps; s++)
            fill(s);
    float c[32];
    for (int i = 0; i < 32; i++)
        c[i] = 0;
    for (int step = 0; step < steps; step++) {
        wait(shared_address(&full[step % STAGES]), step / STAGES & 1);
        uint32_t stage = base + step % STAGES * 2 * BOX;
        asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
        for (int k = 0; k < 128; k += 32)
            asm volatile("wgmma.mma_async.sync.aligned.m64n64k32.f32.e4m3.e4m3 "
                         "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
                         "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "
                         "%32, %33, 1, 1, 1;"
                         : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]), "+f"(c[4]), "+f"(c[5]), "+f"(c[6]),
                           "+f"(c[7]), "+f"(c[8]), "+f"(c[9]), "+f"(c[10]), "+f"(c[11]), "+f"(c[12]), "+f"(c[13]),
                           "+f"(c[14]), "+f"(c[15]), "+f"(c[16]), "+f"(c[17]), "+f"(c[18]), "+f"(c[19]),
                           "+f"(c[20]), "+f"(c[21]), "+f"(c[22]), "+f"(c[23]), "+f"(c[24]), "+f"(c[25]),
                           "+f"(c[26]), "+f"(c[27]), "+f"(c[28]), "+f"(c[29]), "+f"(c[30]), "+f"(c[31])
                         : "l"(descriptor(stage + k)), "l"(descriptor(stage + BOX + k)));
        asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
        asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
        __syncthreads();
        if (threadIdx.x == 0 && step + STAGES < steps)
            fill(step + STAGES);
    }
    int row = threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4, column = threadIdx.x % 4 * 2;
    for (int i = 0; i < 32; i++)
        d[(row + i / 2 % 2 * 8) * 64 + column + i / 4 * 8 + i % 2] = c[i];
}
