// The C ABI of the judge kernel: what the TensorRT shell, the tests and the benchmark call.
// Free of TensorRT and of CUDA headers. What the kernel does: README.md, "Semantics".
#pragma once

#include <stddef.h>
#include <stdint.h>

#define JUDGE_ACCEPT_ABI_VERSION 1
#define JUDGE_ACCEPT_MAX_END_IDS 16
#define JUDGE_ACCEPT_EXPORT __attribute__((visibility("default")))

#ifdef __cplusplus
extern "C" {
#endif

enum JudgeAcceptType {
    JUDGE_ACCEPT_F32 = 0,
    JUDGE_ACCEPT_F16 = 1,
    JUDGE_ACCEPT_BF16 = 2,  // hidden states only
};

// Every pointer but end_ids' is device memory. T tokens, R rows, B requests, V columns.
struct JudgeAcceptArguments {
    void const* logits;              // [R, V] logits_type
    void const* hidden;              // [R, H] hidden_type
    int32_t const* input_ids;        // [T]
    int32_t const* last_token_ids;   // [R], 1-based packed positions, ascending
    int32_t const* context_lengths;  // [B]
    float const* weight;             // [H], aligned to 16 bytes
    void* edited;                    // [R, V] logits_type, not aliased with logits
    float* scores;                   // [B, max_draft_len], or null
    void* workspace;                 // judge_accept_workspace_size bytes, aligned to 8; any content
    size_t workspace_size;
    int32_t tokens;
    int32_t rows;
    int32_t requests;
    int32_t columns;
    int32_t hidden_size;
    int32_t logits_type;      // JudgeAcceptType
    int32_t hidden_type;      // JudgeAcceptType
    int32_t vocab_size;       // 1..columns
    int32_t max_draft_len;    // columns of scores
    int32_t protect_end_ids;  // 0 or 1
    int32_t end_count;
    int32_t end_ids[JUDGE_ACCEPT_MAX_END_IDS];
    float bias;
    float threshold;
    float boost;
    int32_t threads;  // a block's; 0: 256. A multiple of 32, at most 1024
};

JUDGE_ACCEPT_EXPORT int judge_accept_abi_version(void);

// Bytes of workspace for these sizes; 0 where an argument is out of range.
JUDGE_ACCEPT_EXPORT size_t judge_accept_workspace_size(
    int32_t rows, int32_t columns, int32_t logits_type, int32_t threads);

// Enqueues on `stream` (a cudaStream_t): no allocation, no synchronisation, so it may be captured
// into a CUDA graph. Returns a cudaError_t, 0 for success; cudaErrorInvalidValue (1) for arguments
// out of range, and then nothing was enqueued.
JUDGE_ACCEPT_EXPORT int launch_judge_accept(
    struct JudgeAcceptArguments const* arguments, void* stream);

#ifdef __cplusplus
}
#endif
