// Enough of CUDA to run the kernels' own source on a CPU, for tests. A block's threads are fibers
// of one OS thread that change places at barriers and shuffles only; a grid's blocks run one after
// the other. So a launch is fast, its result certain, and a missing barrier shows when the fibers
// run in descending order (judge_accept_host_order): then readers come before the writer.
#pragma once

#include <ucontext.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
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

inline HostIndex threadIdx, blockIdx, blockDim, gridDim;

inline bool host_descending = false;

// 0: threads run in ascending order between barriers (default); 1: in descending order.
extern "C" __attribute__((visibility("default"), used)) inline void judge_accept_host_order(
    int descending) {
    host_descending = descending != 0;
}

struct HostFiber {
    static constexpr size_t kStack = 64 * 1024;
    ucontext_t context;
    std::unique_ptr<char[]> stack{new char[kStack]};
    bool done = false;
};

inline std::vector<HostFiber> host_fibers;
inline std::vector<unsigned long long> host_slots;  // one a thread, for shuffles and votes
inline ucontext_t host_scheduler;
inline unsigned long long host_progress = 0;  // barriers passed and threads ended

// The running fiber lets the others go on.
inline void host_yield() {
    swapcontext(&host_fibers[threadIdx.x].context, &host_scheduler);
}

struct HostBarrier {
    int expected = 0;
    int arrived = 0;
    unsigned phase = 0;

    void wait() {
        unsigned const mine = phase;
        if (++arrived == expected) {
            arrived = 0;
            ++phase;
            ++host_progress;
        }
        while (phase == mine) {
            host_yield();
        }
    }
};

inline HostBarrier host_block_barrier;
inline std::vector<HostBarrier> host_warp_barriers;

inline void __syncthreads() {
    host_block_barrier.wait();
}

inline int __syncthreads_or(int predicate) {
    host_slots[threadIdx.x] = predicate != 0;
    __syncthreads();
    int any = 0;
    for (auto const slot : host_slots) {
        any |= slot != 0;
    }
    __syncthreads();
    return any;
}

template <typename Value>
Value host_shuffle(Value value, unsigned source) {
    static_assert(sizeof(Value) <= sizeof(unsigned long long));
    HostBarrier& warp = host_warp_barriers[threadIdx.x / 32];
    std::memcpy(&host_slots[threadIdx.x], &value, sizeof(Value));
    warp.wait();
    std::memcpy(&value, &host_slots[source], sizeof(Value));
    warp.wait();
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

// Round to nearest even, for finite values of at least 2^-14 (the kernel stores raised maxima
// only).
inline __half __float2half_rn(float value) {
    unsigned const bits = __float_as_uint(value);
    unsigned const sign = bits >> 16 & 0x8000u;
    unsigned magnitude = bits & 0x7fffffffu;
    magnitude += 0xfffu + (magnitude >> 13 & 1u);
    return {static_cast<unsigned short>(sign | ((magnitude >> 13) - (112u << 10)))};
}

template <typename Arguments>
struct HostLaunch {
    static inline void (*kernel)(Arguments);
    static inline Arguments const* arguments;

    static void fiber() {
        kernel(*arguments);
        host_fibers[threadIdx.x].done = true;
        ++host_progress;
        host_yield();
    }
};

// Runs kernel(arguments) over the grid; returns 0. The stream is not used: the call waits. Not for
// two OS threads at a time.
template <typename Arguments>
int launch(
    void (*kernel)(Arguments), int64_t blocks, int threads, Arguments const& arguments, void*) {
    HostLaunch<Arguments>::kernel = kernel;
    HostLaunch<Arguments>::arguments = &arguments;
    host_fibers.resize(threads);
    host_slots.assign(threads, 0);
    host_block_barrier = HostBarrier{threads};
    host_warp_barriers.assign(threads / 32, HostBarrier{32});
    blockDim.x = static_cast<unsigned>(threads);
    gridDim.x = static_cast<unsigned>(blocks);
    for (int64_t block = 0; block < blocks; ++block) {
        blockIdx.x = static_cast<unsigned>(block);
        for (HostFiber& fiber : host_fibers) {
            getcontext(&fiber.context);
            fiber.context.uc_stack.ss_sp = fiber.stack.get();
            fiber.context.uc_stack.ss_size = HostFiber::kStack;
            fiber.context.uc_link = nullptr;
            fiber.done = false;
            makecontext(&fiber.context, &HostLaunch<Arguments>::fiber, 0);
        }
        for (int running = threads; running > 0;) {
            auto const before = host_progress;
            for (int i = 0; i < threads; ++i) {
                int const thread = host_descending ? threads - 1 - i : i;
                HostFiber& fiber = host_fibers[thread];
                if (!fiber.done) {
                    threadIdx.x = static_cast<unsigned>(thread);
                    swapcontext(&host_scheduler, &fiber.context);
                    running -= fiber.done;
                }
            }
            if (host_progress == before) {
                std::fprintf(stderr, "host_cuda.h: a barrier that not all threads reach\n");
                std::abort();
            }
        }
    }
    return 0;
}
