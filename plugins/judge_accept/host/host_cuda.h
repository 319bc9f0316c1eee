// Enough of CUDA to run the kernels' own source on a CPU, for tests: a block's threads are
// std::threads, __syncthreads and the warp shuffles are std::barriers, and a grid's blocks run one
// after the other. Real threads, so that a sanitizer sees a missing barrier.
#pragma once

#include <barrier>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <thread>
#include <vector>

#define __global__
#define __host__
#define __device__
#define __shared__ static  // one block at a time

struct alignas(16) uint4 {
    unsigned x, y, z, w;
};

struct HostIndex {
    unsigned x = 0;
};

inline thread_local HostIndex threadIdx, blockIdx, blockDim, gridDim;

struct HostBlock {
    explicit HostBlock(int threads) : slots(threads), barrier(threads) {
        for (int warp = 0; warp < threads / 32; ++warp) {
            warps.push_back(std::make_unique<std::barrier<>>(32));
        }
    }
    std::vector<unsigned long long> slots;  // one a thread, for shuffles
    std::vector<std::unique_ptr<std::barrier<>>> warps;
    std::barrier<> barrier;
};

inline thread_local HostBlock* host_block = nullptr;

inline void __syncthreads() {
    host_block->barrier.arrive_and_wait();
}

inline int __syncthreads_or(int predicate) {
    host_block->slots[threadIdx.x] = predicate != 0;
    __syncthreads();
    int any = 0;
    for (auto const slot : host_block->slots) {
        any |= slot != 0;
    }
    __syncthreads();
    return any;
}

template <typename Value>
Value host_shuffle(Value value, unsigned source) {
    static_assert(sizeof(Value) <= sizeof(unsigned long long));
    unsigned const thread = threadIdx.x;
    auto& warp = *host_block->warps[thread / 32];
    std::memcpy(&host_block->slots[thread], &value, sizeof(Value));
    warp.arrive_and_wait();
    std::memcpy(&value, &host_block->slots[source], sizeof(Value));
    warp.arrive_and_wait();
    return value;
}

template <typename Value>
Value __shfl_xor_sync(unsigned, Value value, int mask) {
    return host_shuffle(value, threadIdx.x ^ static_cast<unsigned>(mask));
}

template <typename Value>
Value __shfl_up_sync(unsigned, Value value, int delta) {
    unsigned const lane = threadIdx.x % 32;
    unsigned const back = lane >= static_cast<unsigned>(delta) ? delta : 0;
    return host_shuffle(value, threadIdx.x - back);
}

template <typename Value>
Value __ldcs(Value const* pointer) {
    return *pointer;
}

inline float __fadd_rn(float a, float b) {
    return a + b;  // compiled with -ffp-contract=off
}
inline float __fmul_rn(float a, float b) {
    return a * b;
}

inline float __uint_as_float(unsigned bits) {
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}
inline unsigned __float_as_uint(float value) {
    unsigned bits;
    std::memcpy(&bits, &value, 4);
    return bits;
}

struct __half {
    unsigned short bits;
};

inline __half __ushort_as_half(unsigned short bits) {
    return {bits};
}
inline unsigned short __half_as_ushort(__half value) {
    return value.bits;
}

inline float __half2float(__half half) {
    unsigned const sign = (half.bits & 0x8000u) << 16;
    unsigned const magnitude = half.bits & 0x7fffu;
    if (magnitude >= 0x7c00u) {  // infinity, NaN
        return __uint_as_float(sign | 0x7f800000u | (magnitude & 0x3ffu) << 13);
    }
    // Exponent re-biased by a product, which is exact for subnormals too.
    float const value = __uint_as_float(magnitude << 13) * 0x1p112f;
    return __uint_as_float(sign | __float_as_uint(value));
}

// Round to nearest even, for finite values of at least 2^-14 (the kernel stores raised maxima only).
inline __half __float2half_rn(float value) {
    unsigned const bits = __float_as_uint(value);
    unsigned const sign = bits >> 16 & 0x8000u;
    unsigned magnitude = bits & 0x7fffffffu;
    magnitude += 0xfffu + (magnitude >> 13 & 1u);
    return {static_cast<unsigned short>(sign | ((magnitude >> 13) - (112u << 10)))};
}

// Runs kernel(arguments) over the grid; returns 0. The stream is not used: the call waits.
template <typename Arguments>
int launch(void (*kernel)(Arguments), int64_t blocks, int threads, Arguments const& arguments, void*) {
    HostBlock block(threads);
    auto const run = [&](unsigned thread) {
        host_block = &block;
        threadIdx.x = thread;
        blockDim.x = static_cast<unsigned>(threads);
        gridDim.x = static_cast<unsigned>(blocks);
        for (int64_t index = 0; index < blocks; ++index) {
            blockIdx.x = static_cast<unsigned>(index);
            kernel(arguments);
            block.barrier.arrive_and_wait();  // shared memory is the next block's
        }
    };
    std::vector<std::thread> pool;
    for (int thread = 1; thread < threads; ++thread) {
        pool.emplace_back(run, thread);
    }
    run(0);
    for (auto& thread : pool) {
        thread.join();
    }
    return 0;
}
