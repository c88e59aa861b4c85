// Control flow: calls of functions that stay functions, a switch that becomes a jump table, nested divergence.

__device__ __noinline__ int collatz(unsigned n, int limit) {
    int steps = 0;
    while (n != 1 && steps < limit) {
        n = n % 2 ? 3 * n + 1 : n / 2;
        steps++;
    }
    return steps;
}

struct Pair {
    double sum;
    int count;
};

__device__ __noinline__ Pair accumulate(Pair pair, double x) {
    pair.sum += x;
    pair.count += x > 0;
    return pair;
}

extern "C" __global__ void collatz_steps(const unsigned *n, int *steps, int count) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < count)
        steps[i] = n[i] % 3 == 0 ? -collatz(n[i], 1000) : collatz(n[i] + 1, 1000);
}

extern "C" __global__ void pairs(const double *x, int n, double *sums, int *counts) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    Pair pair = {0.0, 0};
    for (int k = 0; k <= i && k < n; k++)
        pair = accumulate(pair, x[k]);
    sums[i] = pair.sum;
    counts[i] = pair.count;
}

extern "C" __global__ void interpret(const int *program, int length, int *out) {
    int x = blockIdx.x * blockDim.x + threadIdx.x, y = 1;
    for (int pc = 0; pc < length; pc++) {
        switch (program[pc]) {
        case 0: x += 3; break;
        case 1: x *= 5; break;
        case 2: x ^= y << 3; break;
        case 3: y += x & 7; break;
        case 4: if (x & 1) y = -y; else x -= y; break;
        case 5: x = (x >> 2) + y; break;
        case 6: y = x % 17; break;
        case 7: { int t = x; x = y; y = t; break; }
        case 8: for (int k = 0; k < (x & 3); k++) y += k * x; break;
        default: x = ~x;
        }
    }
    out[blockIdx.x * blockDim.x + threadIdx.x] = x * 31 + y;
}

// A small array with run-time subscripts, which lives in local memory.
extern "C" __global__ void sort_eight(int *x) {
    int i = (blockIdx.x * blockDim.x + threadIdx.x) * 8;
    int v[8];
    for (int k = 0; k < 8; k++)
        v[k] = x[i + k];
    for (int k = 1; k < 8; k++) {
        int value = v[k], at = k;
        while (at > 0 && v[at - 1] > value) {
            v[at] = v[at - 1];
            at--;
        }
        v[at] = value;
    }
    for (int k = 0; k < 8; k++)
        x[i + k] = v[k];
}
