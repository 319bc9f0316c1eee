// The judge's kernels. Two launches, in stream order:
//
//   copy_rows    reads every row once: writes the copy and, for rows that may verify a draft, the
//                maximum of each chunk of the row into the workspace; fills the scores with NaN
//   judge_rows   one block a row: is it a draft row, what is its score, and the one-element edit
//
// Why two, and why chunks. The copy of R x V logits is nearly all of the work, and R is small
// (K + 1 rows for one request), so one block a row would leave most of a GPU idle: a row is split
// into chunks of 16 KB, one block each. The maximum shares the copy's one read. Chunk maxima meet
// in the second kernel, where the launch boundary is the barrier: no atomics, no tickets to reset,
// and nothing that depends on which block came first. A maximum is exact in any order, and the dot
// product's order depends on H alone, so the bits are the same on every rank and for every launch
// shape.
#pragma once

#ifdef JUDGE_ACCEPT_HOST_BUILD
#include "host/host_cuda.h"
#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime_api.h>
#endif

#include <float.h>
#include <string.h>

#include "judge_accept.h"

namespace judge {

constexpr int kWarp = 32;
constexpr int kUnroll = 4;      // 16-byte loads in flight a thread
constexpr int kDotLanes = 256;  // partial sums of the dot product, whatever the block size
constexpr int kDotGroup = 8;    // neighbouring elements one lane takes at a time
constexpr float kLargestHalf = 65504.0f;

// ---- element types: raw storage, converted to float where used ----

struct F32 {
    using Storage = float;
    static constexpr float kLargest = FLT_MAX;
    static __device__ float load(Storage value) { return value; }
    static __device__ Storage store(float value) { return value; }
};

struct F16 {
    using Storage = unsigned short;
    static constexpr float kLargest = kLargestHalf;
    static __device__ float load(Storage bits) { return __half2float(__ushort_as_half(bits)); }
    static __device__ Storage store(float value) {
        return __half_as_ushort(__float2half_rn(value));
    }
};

struct BF16 {
    using Storage = unsigned short;
    static __device__ float load(Storage bits) {
        return __uint_as_float(static_cast<unsigned>(bits) << 16);
    }
};

template <typename Type>
constexpr int kVector = 16 / static_cast<int>(sizeof(typename Type::Storage));

// How many elements lie before the first one that is aligned to 16 bytes.
template <typename Type>
__device__ int elements_to_alignment(typename Type::Storage const* pointer) {
    auto const bytes = (16 - (reinterpret_cast<uintptr_t>(pointer) & 15)) & 15;
    return static_cast<int>(bytes / sizeof(typename Type::Storage));
}

template <typename Type>
inline __host__ __device__ int64_t chunks_of_row(int columns, int threads) {
    int64_t const chunk = static_cast<int64_t>(threads) * kUnroll * kVector<Type>;
    return (columns + chunk - 1) / chunk;
}

// ---- maximum with its column ----

// The lowest column of the largest value; a NaN anywhere wins and stays.
struct Maximum {
    float value = -INFINITY;
    int column = 0x7fffffff;

    __device__ void take(float other, int other_column) {
        if (other > value || other != other) {
            value = other;
            column = other_column;
        }
    }
};

// Ordered as (value, then lower column), so that an integer maximum merges two. -0 equals +0, NaN
// is above +inf. Zero is below every key.
using Key = unsigned long long;

__device__ inline Key key_of(Maximum const& best) {
    unsigned const bits = __float_as_uint(best.value + 0.0f);  // -0 + 0 is +0
    unsigned order = (bits & 0x80000000u) ? ~bits : bits | 0x80000000u;
    if (best.value != best.value) {
        order = 0xffffffffu;
    }
    return static_cast<Key>(order) << 32 | (0xffffffffu - static_cast<unsigned>(best.column));
}

__device__ inline Maximum maximum_of(Key key) {
    unsigned const order = static_cast<unsigned>(key >> 32);
    Maximum best;
    best.value = __uint_as_float((order & 0x80000000u) ? order & 0x7fffffffu : ~order);
    best.column = static_cast<int>(0xffffffffu - static_cast<unsigned>(key));
    return best;
}

// The largest key of the block, for every thread. All threads must call it, once a kernel.
__device__ inline Key block_maximum(Key key) {
    __shared__ Key slots[kWarp];
    for (int offset = kWarp / 2; offset > 0; offset /= 2) {
        Key const other = __shfl_xor_sync(0xffffffffu, key, offset);
        key = other > key ? other : key;
    }
    int const thread = threadIdx.x;
    if (thread % kWarp == 0) {
        slots[thread / kWarp] = key;
    }
    __syncthreads();
    for (int warp = 0; warp < static_cast<int>(blockDim.x) / kWarp; ++warp) {
        key = slots[warp] > key ? slots[warp] : key;
    }
    return key;
}

// ---- 1. the copy ----

// Whether the next row is the next packed token. Necessary for a draft row, not enough: the next
// request's only row may be there too (judge_rows looks at the boundaries).
__device__ inline bool has_successor(JudgeAcceptArguments const& a, int row) {
    return row + 1 < a.rows
           && a.last_token_ids[row + 1] == static_cast<int64_t>(a.last_token_ids[row]) + 1;
}

// Whether any row can be edited. Every request has at least one row and one more a draft token, so
// R = B means that nothing was drafted: prompts and generation steps pay for the copy alone.
inline __host__ __device__ bool may_edit(JudgeAcceptArguments const& a) {
    return a.threshold < 1.0f && a.rows > a.requests;
}

// gridDim.x = max(1, R * chunks); block x takes chunk x % chunks of row x / chunks.
template <typename Logit>
__global__ void copy_rows(JudgeAcceptArguments const a) {
    using Storage = typename Logit::Storage;
    int const thread = threadIdx.x;
    int const threads = blockDim.x;

    if (a.scores != nullptr) {
        int64_t const count = static_cast<int64_t>(a.requests) * a.max_draft_len;
        int64_t const stride = static_cast<int64_t>(gridDim.x) * threads;
        for (int64_t i = static_cast<int64_t>(blockIdx.x) * threads + thread; i < count;
            i += stride) {
            a.scores[i] = __uint_as_float(0x7fc00000u);  // NaN
        }
    }
    if (a.rows == 0) {
        return;
    }

    int const chunks = static_cast<int>(chunks_of_row<Logit>(a.columns, threads));
    int const row = blockIdx.x / chunks;
    int const chunk = blockIdx.x % chunks;
    auto const* in = static_cast<Storage const*>(a.logits) + static_cast<int64_t>(row) * a.columns;
    auto* out = static_cast<Storage*>(a.edited) + static_cast<int64_t>(row) * a.columns;

    Maximum best;
    auto const copy_one = [&](int column) {
        Storage const element = in[column];
        out[column] = element;
        if (column < a.vocab_size) {
            best.take(Logit::load(element), column);
        }
    };

    int const vectors_a_chunk = threads * kUnroll;
    if (((reinterpret_cast<uintptr_t>(in) ^ reinterpret_cast<uintptr_t>(out)) & 15) == 0) {
        // Odd V: a row starts anywhere, but in and out start alike. Scalars up to the first aligned
        // element and behind the last whole vector.
        int const to_alignment = elements_to_alignment<Logit>(in);
        int const head = to_alignment < a.columns ? to_alignment : a.columns;
        int const vectors = (a.columns - head) / kVector<Logit>;
        if (chunk == 0) {
            for (int column = thread; column < head; column += threads) {
                copy_one(column);
            }
        }
        auto const* in_vectors = reinterpret_cast<uint4 const*>(in + head);
        auto* out_vectors = reinterpret_cast<uint4*>(out + head);
        uint4 held[kUnroll];
#pragma unroll
        for (int i = 0; i < kUnroll; ++i) {
            int const index = chunk * vectors_a_chunk + i * threads + thread;
            if (index < vectors) {
                held[i] = __ldcs(in_vectors + index);  // read once: the first to leave the caches
            }
        }
#pragma unroll
        for (int i = 0; i < kUnroll; ++i) {
            int const index = chunk * vectors_a_chunk + i * threads + thread;
            if (index < vectors) {
                out_vectors[index] = held[i];
                Storage elements[kVector<Logit>];
                memcpy(elements, &held[i], 16);
#pragma unroll
                for (int e = 0; e < kVector<Logit>; ++e) {
                    int const column = head + index * kVector<Logit> + e;
                    if (column < a.vocab_size) {
                        best.take(Logit::load(elements[e]), column);
                    }
                }
            }
        }
        if (chunk == chunks - 1) {
            for (int column = head + vectors * kVector<Logit> + thread; column < a.columns;
                column += threads) {
                copy_one(column);
            }
        }
    } else {
        int const width = vectors_a_chunk * kVector<Logit>;
        int64_t const end = static_cast<int64_t>(chunk + 1) * width;
        int const last = end < a.columns ? static_cast<int>(end) : a.columns;
        for (int column = chunk * width + thread; column < last; column += threads) {
            copy_one(column);
        }
    }

    if (may_edit(a) && has_successor(a, row)) {  // the same for the whole block
        Key const key = block_maximum(key_of(best));
        if (thread == 0) {
            static_cast<Key*>(a.workspace)[blockIdx.x] = key;
        }
    }
}

// ---- 2. the judge ----

struct Segment {
    int request;  // -1: none
    int start;    // packed position of its first token
};

// The context-phase request that holds both packed positions q - 1 and q.
//
// Context requests come first, each with context_lengths[b] tokens; generation requests follow with
// one token each, whatever their context_lengths say. So c, the number of context requests, is the
// smallest count with f(c) = sum(context_lengths[0:c]) + (B - c) = T. Lengths are at least 1, so f
// never falls, and b < c exactly where f(b) < T. A batch without such a c has no segments.
//
// For every thread; all threads must call it.
__device__ inline Segment context_segment(JudgeAcceptArguments const& a, int q) {
    __shared__ Segment found;
    __shared__ long long warp_totals[kWarp];
    int const thread = threadIdx.x;
    int const threads = blockDim.x;
    if (thread == 0) {
        found = Segment{-1, 0};
    }

    bool has_count = false;  // such a c exists
    long long before = 0;    // tokens of the requests already seen
    for (int64_t first = 0; first < a.requests; first += threads) {
        int64_t const b = first + thread;
        long long length = 0;
        if (b < a.requests) {
            length = a.context_lengths[b] > 1 ? a.context_lengths[b] : 1;
        }
        long long sum = length;  // inclusive prefix sum over the warp, then over the block
        for (int offset = 1; offset < kWarp; offset *= 2) {
            long long const other = __shfl_up_sync(0xffffffffu, sum, offset);
            sum += thread % kWarp >= offset ? other : 0;
        }
        if (thread % kWarp == kWarp - 1) {
            warp_totals[thread / kWarp] = sum;
        }
        __syncthreads();
        long long total = 0;
        for (int warp = 0; warp < threads / kWarp; ++warp) {
            sum += warp < thread / kWarp ? warp_totals[warp] : 0;
            total += warp_totals[warp];
        }
        long long const end = before + sum;
        long long const start = end - length;
        bool ends_here = false;
        if (b < a.requests) {
            long long const others = a.requests - b;
            if (start + others < a.tokens && start < q && q < end) {
                found = Segment{static_cast<int>(b), static_cast<int>(start)};
            }
            ends_here = end + others - 1 == a.tokens;
        }
        has_count = __syncthreads_or(ends_here) || has_count;
        before += total;
        int64_t const seen = first + threads < a.requests ? first + threads : a.requests;
        if (before + (a.requests - seen) >= a.tokens) {
            break;
        }
    }
    return has_count ? found : Segment{-1, 0};
}

// w . h in float32, the same bits for every block size, grid, alignment and machine: lane l of 256
// sums elements 8g..8g+7 for g = l, l + 256, ... in that order, product and sum rounded separately
// (no fused multiply-add, which NumPy has not); then a halving tree over the lanes.
//
// For every thread; all threads must call it.
template <typename Hidden>
__device__ float dot(typename Hidden::Storage const* hidden, float const* weight, int size) {
    using Storage = typename Hidden::Storage;
    __shared__ float sums[kDotLanes];
    int const thread = threadIdx.x;
    int const threads = blockDim.x;
    bool const aligned = elements_to_alignment<Hidden>(hidden) == 0;
    for (int lane = thread; lane < kDotLanes; lane += threads) {
        float sum = 0.0f;
        for (int first = lane * kDotGroup; first < size; first += kDotLanes * kDotGroup) {
            Storage h[kDotGroup];
            float w[kDotGroup];
            int const count = size - first < kDotGroup ? size - first : kDotGroup;
            if (aligned && count == kDotGroup) {
                constexpr int kVectors = kDotGroup / kVector<Hidden>;
                uint4 raw[kVectors];
#pragma unroll
                for (int i = 0; i < kVectors; ++i) {
                    raw[i] = reinterpret_cast<uint4 const*>(hidden + first)[i];
                }
                memcpy(h, raw, sizeof(h));
            } else {
                for (int e = 0; e < count; ++e) {
                    h[e] = hidden[first + e];
                }
            }
            if (count == kDotGroup) {
                uint4 raw[2];
                raw[0] = reinterpret_cast<uint4 const*>(weight + first)[0];
                raw[1] = reinterpret_cast<uint4 const*>(weight + first)[1];
                memcpy(w, raw, sizeof(w));
            } else {
                for (int e = 0; e < count; ++e) {
                    w[e] = weight[first + e];
                }
            }
#pragma unroll
            for (int e = 0; e < kDotGroup; ++e) {
                if (e < count) {
                    sum = __fadd_rn(sum, __fmul_rn(Hidden::load(h[e]), w[e]));
                }
            }
        }
        sums[lane] = sum;
    }
    __syncthreads();
    for (int width = kDotLanes / 2; width > 0; width /= 2) {
        for (int lane = thread; lane < width; lane += threads) {
            sums[lane] = __fadd_rn(sums[lane], sums[lane + width]);
        }
        __syncthreads();
    }
    return sums[0];
}

__device__ inline bool is_end(JudgeAcceptArguments const& a, int id) {
    bool end = false;
    for (int i = 0; i < a.end_count; ++i) {
        end = end || a.end_ids[i] == id;
    }
    return end;
}

// gridDim.x = R. Every exit is taken by the whole block. `chunks` are copy_rows' a row.
template <typename Logit, typename Hidden>
__global__ void judge_rows(JudgeAcceptArguments const a) {
    int const row = blockIdx.x;
    int const thread = threadIdx.x;
    if (!has_successor(a, row)) {
        return;
    }
    int const q = a.last_token_ids[row];  // packed position of the token that this row scores
    if (q < 1 || q >= a.tokens || a.requests == 0) {
        return;
    }
    Segment const segment = context_segment(a, q);
    int const draft = a.input_ids[q];
    if (segment.request < 0 || draft < 0 || draft >= a.vocab_size) {
        return;
    }

    auto const* hidden = static_cast<typename Hidden::Storage const*>(a.hidden)
                         + static_cast<int64_t>(row + 1) * a.hidden_size;
    float const z = __fadd_rn(dot<Hidden>(hidden, a.weight, a.hidden_size), a.bias);
    // A hidden state with NaN or infinity says nothing: no score, never accepted.
    float const score =
        fabsf(z) <= FLT_MAX ? 1.0f / (1.0f + expf(-z)) : __uint_as_float(0x7fc00000u);

    float* cell = nullptr;  // of this draft's score; thread 0 alone has it
    if (a.scores != nullptr && thread == 0) {
        // The request's first row: the first whose position is in the segment.
        int low = 0;
        int high = row;
        while (low < high) {
            int const middle = low + (high - low) / 2;
            if (a.last_token_ids[middle] > segment.start) {
                high = middle;
            } else {
                low = middle + 1;
            }
        }
        if (row - low < a.max_draft_len) {
            cell = a.scores + static_cast<int64_t>(segment.request) * a.max_draft_len + row - low;
            *cell = score;
        }
    }
    if (!(score > a.threshold && may_edit(a))) {
        return;
    }

    int const chunks = static_cast<int>(chunks_of_row<Logit>(a.columns, blockDim.x));
    auto const* maxima = static_cast<Key const*>(a.workspace) + static_cast<int64_t>(row) * chunks;
    Key key = 0;
    for (int chunk = thread; chunk < chunks; chunk += blockDim.x) {
        key = maxima[chunk] > key ? maxima[chunk] : key;
    }
    Maximum const best = maximum_of(block_maximum(key));
    if (thread != 0 || !(fabsf(best.value) <= FLT_MAX) || best.column == draft) {
        return;  // a row with NaN or infinity as its maximum is the runtime's to judge
    }
    if (a.protect_end_ids && (is_end(a, best.column) || is_end(a, draft))) {
        return;
    }
    float const raised = fminf(fmaxf(best.value, 0.0f) + a.boost, Logit::kLargest);
    if (raised > best.value) {
        auto* out = static_cast<typename Logit::Storage*>(a.edited);
        out[static_cast<int64_t>(row) * a.columns + draft] = Logit::store(raised);
        if (cell != nullptr) {
            *cell = -score;  // edited: the score is above a threshold >= 0, so the sign is free
        }
    }
}

}  // namespace judge
