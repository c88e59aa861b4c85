// One result a line of a table: integer, bit, floating-point and conversion operations.

#include <cstdint>
#include <cuda_fp16.h>

extern "C" __global__ void integers(const int *a, const int *b, long long *out) {
    int i = threadIdx.x;
    int x = a[i], y = b[i];
    unsigned ux = x, uy = y;
    long long *o = out + i * 24;
    o[0] = (long long)x * y;
    o[1] = (long long)((unsigned long long)ux * uy);
    o[2] = __mulhi(x, y);
    o[3] = __umulhi(ux, uy);
    o[4] = y ? x / y : 0;
    o[5] = uy ? ux % uy : 0;
    o[6] = __popc(ux);
    o[7] = __clz(x);
    o[8] = __brev(ux);
    o[9] = __ffs(x);
    o[10] = __byte_perm(ux, uy, 0x5140);
    o[11] = __funnelshift_l(ux, uy, y & 31);
    o[12] = (ux & uy) | (~ux & 0x0f0f0f0f);
    o[13] = min(x, y) - max(ux, uy);
    o[14] = __sad(x, y, 5u);
    o[15] = (long long)x << (y & 63);
    o[16] = ((long long)x << 20 | uy) >> (x & 31);
    o[17] = (int)(short)x * (signed char)y;
    o[18] = abs(x) + __hadd(x, y);
    o[19] = x > 0 ? (ux >> (y & 7)) & 0xff : (int)(ux << 3);
    o[20] = __dp4a(x, y, 7);
    o[21] = (long long)((unsigned long long)x * 0x9e3779b97f4a7c15ull) / (y | 1);
    o[22] = __mul24(x, y);
    o[23] = (ux > uy) + 2 * (x > y) + 4 * (x == y);
}

extern "C" __global__ void floats(const float *a, const float *b, float *out) {
    int i = threadIdx.x;
    float x = a[i], y = b[i];
    float *o = out + i * 20;
    o[0] = x / y;
    o[1] = sqrtf(fabsf(x));
    o[2] = fmaf(x, y, 1.0f);
    o[3] = fminf(x, y);
    o[4] = fmaxf(x, y);
    o[5] = floorf(x);
    o[6] = rintf(x);
    o[7] = truncf(y);
    o[8] = __fadd_rz(x, y);
    o[9] = __fmul_ru(x, y);
    o[10] = copysignf(x, y);
    o[11] = (float)(int)x;
    o[12] = (float)(unsigned)fabsf(x);
    o[13] = __saturatef(x);
    o[14] = x < y ? 1.0f : (x == y ? 0.5f : 0.0f);
    o[15] = __half2float(__float2half_rn(x));
    o[16] = __half2float(__float2half_rz(x));
    o[17] = (float)((double)x * (double)y);
    o[18] = __frcp_rn(x);
    o[19] = isnan(x) ? 1.0f : (isinf(x) ? 2.0f : 3.0f);
}

// Accuracy is compared, not bits.
extern "C" __global__ void functions(const float *a, float *out) {
    int i = threadIdx.x;
    float x = a[i];
    float *o = out + i * 10;
    o[0] = expf(x);
    o[1] = logf(fabsf(x) + 0.25f);
    o[2] = __expf(x);
    o[3] = __logf(fabsf(x) + 0.25f);
    o[4] = __sinf(x);
    o[5] = __cosf(x);
    o[6] = rsqrtf(fabsf(x) + 0.25f);
    o[7] = tanhf(x);
    o[8] = x / (1.0f + __expf(-x));
    o[9] = powf(fabsf(x) + 0.25f, 1.5f);
}

extern "C" __global__ void doubles(const double *a, const double *b, double *out) {
    int i = threadIdx.x;
    double x = a[i], y = b[i];
    double *o = out + i * 10;
    o[0] = x / y;
    o[1] = sqrt(fabs(x));
    o[2] = fma(x, y, -1.0);
    o[3] = fmin(x, y);
    o[4] = floor(x);
    o[5] = rint(y);
    o[6] = (double)(long long)x;
    o[7] = (double)(float)x;
    o[8] = x > y ? x : -y;
    o[9] = (double)(unsigned long long)fabs(y);
}

extern "C" __global__ void halves(const __half2 *a, const __half2 *b, __half2 *out) {
    int i = threadIdx.x;
    __half2 x = a[i], y = b[i];
    __half2 *o = out + i * 5;
    o[0] = __hadd2(x, y);
    o[1] = __hmul2(x, y);
    o[2] = __hfma2(x, y, x);
    o[3] = __hmax2(x, y);
    o[4] = __hneg2(x);
}
