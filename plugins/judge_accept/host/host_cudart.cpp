// The CUDA runtime calls of the plugin's shell, on host memory: for the harness, linked
// instead of cudart. `host_device_available = false` is a machine without a GPU.
#include <cuda_runtime_api.h>

#include <cstdlib>
#include <cstring>

bool host_device_available = true;
int host_allocations = 0;  // alive

cudaError_t cudaGetDevice(int* device) {
    *device = 0;
    return host_device_available ? cudaSuccess : cudaErrorNoDevice;
}

cudaError_t cudaMalloc(void** pointer, size_t bytes) {
    *pointer = std::aligned_alloc(256, (bytes + 255) / 256 * 256);
    ++host_allocations;
    return cudaSuccess;
}

cudaError_t cudaMemcpy(void* to, void const* from, size_t bytes, cudaMemcpyKind) {
    std::memcpy(to, from, bytes);
    return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t) {
    return cudaSuccess;
}

cudaError_t cudaFree(void* pointer) {
    host_allocations -= pointer != nullptr;
    std::free(pointer);
    return cudaSuccess;
}

char const* cudaGetErrorString(cudaError_t error) {
    return error == cudaErrorNoDevice ? "no CUDA-capable device is detected" : "error";
}
