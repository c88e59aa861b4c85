/* A program that frees its device memory when the process ends, from a static destructor, as C++ programs with global
   objects do. */
#include <dlfcn.h>
#include <stdio.h>

typedef int (*fn)();

static void *driver;
static unsigned long long memory;

static fn get(const char *name) { return (fn)dlsym(driver, name); }

__attribute__((destructor)) static void end(void) {
    void *context = 0;
    int freed = get("cuMemFree_v2")(memory), waited = get("cuCtxSynchronize")();
    printf("ending %d %d %d\n", freed, waited, get("cuCtxGetCurrent")(&context));
    ((const char *(*)(void))dlsym(driver, "ptx_sim_last_error"))();
}

int main(void) {
    void *context;
    driver = dlopen("libcuda.so.1", RTLD_NOW);
    if (!driver) return 2;
    get("cuInit")(0);
    get("cuDevicePrimaryCtxRetain")(&context, 0);
    get("cuCtxSetCurrent")(context);
    int allocated = get("cuMemAlloc_v2")(&memory, (size_t)64);
    printf("running %d %d\n", allocated, get("cuCtxSynchronize")());
    return 0;
}
