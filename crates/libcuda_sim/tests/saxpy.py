"""A program over the CUDA driver API that knows nothing of the emulated device: loads the driver by name with
ctypes, compiles PTX, runs saxpy, prints the result; then a kernel that faults, and what is known about it."""

import ctypes
import sys

cuda = ctypes.CDLL("libcuda.so.1")


def call(name, *arguments):
    result = getattr(cuda, name)(*arguments)
    if result != 0:
        text = ctypes.c_char_p()
        cuda.cuGetErrorName(result, ctypes.byref(text))
        sys.exit(f"{name}: {text.value.decode()}")


call("cuInit", 0)
context, module, kernel = ctypes.c_void_p(), ctypes.c_void_p(), ctypes.c_void_p()
call("cuDevicePrimaryCtxRetain", ctypes.byref(context), 0)
call("cuCtxSetCurrent", context)
name = ctypes.create_string_buffer(100)
call("cuDeviceGetName", name, 100, 0)
print(name.value.decode())
with open(sys.argv[1], "rb") as file:
    call("cuModuleLoadData", ctypes.byref(module), file.read() + b"\0")
call("cuModuleGetFunction", ctypes.byref(kernel), module, b"saxpy")

Floats = ctypes.c_float * 4
x, y = Floats(1, 2, 3, 4), Floats(10, 10, 10, 10)
dx, dy = ctypes.c_uint64(), ctypes.c_uint64()
for pointer, host in ((dx, x), (dy, y)):
    call("cuMemAlloc_v2", ctypes.byref(pointer), ctypes.c_size_t(16))
    call("cuMemcpyHtoD_v2", pointer, host, ctypes.c_size_t(16))
a, n = ctypes.c_float(0.5), ctypes.c_uint32(4)
values = [ctypes.cast(ctypes.byref(v), ctypes.c_void_p) for v in (dy, dx, a, n)]
call("cuLaunchKernel", kernel, 1, 1, 1, 32, 1, 1, 0, None, (ctypes.c_void_p * 4)(*values), None)
call("cuCtxSynchronize")
call("cuMemcpyDtoH_v2", y, dy, ctypes.c_size_t(16))
print(*(f"{v:g}" for v in y))

call("cuModuleGetFunction", ctypes.byref(kernel), module, b"null_read")
result = cuda.cuLaunchKernel(kernel, 1, 1, 1, 1, 1, 1, 0, None, None, None)
cuda.ptx_sim_last_fault.restype = ctypes.c_char_p
print(result, cuda.ptx_sim_last_fault().decode())
