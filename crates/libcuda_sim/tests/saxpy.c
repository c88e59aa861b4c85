/* A program over the CUDA driver API that knows nothing of the emulated device: loads the driver by name,
   compiles PTX, runs saxpy, prints the result. */
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>

typedef int (*fn)();

static void *driver;

static fn get(const char *name) {
    fn f = (fn)dlsym(driver, name);
    if (!f) {
        fprintf(stderr, "no %s\n", name);
        exit(2);
    }
    return f;
}

static void check(const char *call, int result) {
    const char *text = "?";
    if (result == 0) return;
    get("cuGetErrorString")(result, &text);
    fprintf(stderr, "%s: %d (%s)\n", call, result, text);
    exit(1);
}

#define CALL(name, ...) check(#name, get(#name)(__VA_ARGS__))

int main(int argc, char **argv) {
    static char ptx[1 << 16];
    float x[4] = {1, 2, 3, 4}, y[4] = {10, 10, 10, 10}, a = 0.5f;
    unsigned n = 4;
    unsigned long long dx, dy;
    void *context, *module, *kernel;
    void *params[] = {&dy, &dx, &a, &n};
    int device;
    FILE *file = argc > 1 ? fopen(argv[1], "r") : NULL;
    if (!file || !fread(ptx, 1, sizeof ptx - 1, file)) return 3;
    driver = dlopen("libcuda.so.1", RTLD_NOW);
    if (!driver) {
        fprintf(stderr, "%s\n", dlerror());
        return 4;
    }
    CALL(cuInit, 0);
    CALL(cuDeviceGet, &device, 0);
    CALL(cuDevicePrimaryCtxRetain, &context, device);
    CALL(cuCtxSetCurrent, context);
    CALL(cuModuleLoadData, &module, ptx);
    CALL(cuModuleGetFunction, &kernel, module, "saxpy");
    CALL(cuMemAlloc_v2, &dx, sizeof x);
    CALL(cuMemAlloc_v2, &dy, sizeof y);
    CALL(cuMemcpyHtoD_v2, dx, x, sizeof x);
    CALL(cuMemcpyHtoD_v2, dy, y, sizeof y);
    CALL(cuLaunchKernel, kernel, 1, 1, 1, 32, 1, 1, 0, NULL, params, NULL);
    CALL(cuCtxSynchronize);
    CALL(cuMemcpyDtoH_v2, y, dy, sizeof y);
    printf("%g %g %g %g\n", y[0], y[1], y[2], y[3]);
    return 0;
}
