// Tensor cores through inline PTX: one warp, one tile.

#include <cstdint>

// D[16][8] = A[16][32] * B[8][32]^T, e4m3, fragments loaded by hand.
extern "C" __global__ void mma_e4m3(const uint8_t *a, const uint8_t *b, float *d) {
    int g = threadIdx.x / 4, t = threadIdx.x % 4;
    auto word = [](const uint8_t *p) { return *(const uint32_t *)p; };
    uint32_t a0 = word(a + g * 32 + t * 4), a1 = word(a + (g + 8) * 32 + t * 4);
    uint32_t a2 = word(a + g * 32 + t * 4 + 16), a3 = word(a + (g + 8) * 32 + t * 4 + 16);
    uint32_t b0 = word(b + g * 32 + t * 4), b1 = word(b + g * 32 + t * 4 + 16);
    float c0 = 0, c1 = 0, c2 = 0, c3 = 0;
    asm volatile("mma.sync.aligned.m16n8k32.row.col.f32.e4m3.e4m3.f32 "
                 "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(c0), "+f"(c1), "+f"(c2), "+f"(c3)
                 : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
    d[g * 8 + 2 * t] = c0, d[g * 8 + 2 * t + 1] = c1;
    d[(g + 8) * 8 + 2 * t] = c2, d[(g + 8) * 8 + 2 * t + 1] = c3;
}

// D[16][8] = A[16][K] * B[K][8], f16, K a multiple of 16: A through ldmatrix, B (row-major) through ldmatrix.trans.
extern "C" __global__ void mma_f16(const uint16_t *a, const uint16_t *b, int K, float *d) {
    __shared__ __align__(16) uint16_t sa[16][16];
    __shared__ __align__(16) uint16_t sb[16][8];
    int lane = threadIdx.x;
    float c[4] = {0, 0, 0, 0};
    for (int k = 0; k < K; k += 16) {
        for (int i = lane; i < 256; i += 32)
            sa[i / 16][i % 16] = a[i / 16 * K + k + i % 16];
        for (int i = lane; i < 128; i += 32)
            sb[i / 8][i % 8] = b[(k + i / 8) * 8 + i % 8];
        __syncwarp();
        uint32_t ra[4], rb[2];
        uint32_t pa = (uint32_t)__cvta_generic_to_shared(&sa[lane % 16][lane / 16 * 8]);
        uint32_t pb = (uint32_t)__cvta_generic_to_shared(&sb[lane % 16][0]);
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(ra[0]), "=r"(ra[1]), "=r"(ra[2]), "=r"(ra[3])
                     : "r"(pa)
                     : "memory");
        asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
                     : "=r"(rb[0]), "=r"(rb[1])
                     : "r"(pb)
                     : "memory");
        asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
                     "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                     : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                     : "r"(ra[0]), "r"(ra[1]), "r"(ra[2]), "r"(ra[3]), "r"(rb[0]), "r"(rb[1]));
        __syncwarp();
    }
    int g = lane / 4, t = lane % 4;
    d[g * 8 + 2 * t] = c[0], d[g * 8 + 2 * t + 1] = c[1];
    d[(g + 8) * 8 + 2 * t] = c[2], d[(g + 8) * 8 + 2 * t + 1] = c[3];
}
