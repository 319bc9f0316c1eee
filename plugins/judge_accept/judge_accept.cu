// The launches behind the C ABI. Compiled by nvcc, and by g++ for the host build
// (host/host_cuda.h).
#include "judge_accept.cuh"

namespace {

constexpr int kDefaultThreads = 256;
constexpr int kInvalidValue = 1;  // cudaErrorInvalidValue

int block_size(int32_t threads) {
    return threads == 0 ? kDefaultThreads : threads;
}

bool valid_threads(int32_t threads) {
    return threads == 0 || (threads >= 32 && threads <= 1024 && threads % 32 == 0);
}

bool is_logits_type(int32_t type) {
    return type == JUDGE_ACCEPT_F32 || type == JUDGE_ACCEPT_F16;
}

// Blocks of copy_rows: rows times chunks a row; -1 where that is no grid.
int64_t copy_blocks(int32_t rows, int32_t columns, int32_t type, int32_t threads) {
    if (rows < 0 || columns < 1 || !is_logits_type(type) || !valid_threads(threads)) {
        return -1;
    }
    int const block = block_size(threads);
    int64_t const chunks = type == JUDGE_ACCEPT_F32
                               ? judge::chunks_of_row<judge::F32>(columns, block)
                               : judge::chunks_of_row<judge::F16>(columns, block);
    int64_t const blocks = rows * chunks;
    return blocks <= 0x7fffffff ? blocks : -1;
}

bool valid(JudgeAcceptArguments const& a) {
    int64_t const blocks = copy_blocks(a.rows, a.columns, a.logits_type, a.threads);
    return blocks >= 0 && a.workspace_size >= blocks * sizeof(judge::Key) && a.tokens >= 0
           && a.requests >= 0 && a.hidden_size >= 1 && a.vocab_size >= 1
           && a.vocab_size <= a.columns && a.hidden_type >= JUDGE_ACCEPT_F32
           && a.hidden_type <= JUDGE_ACCEPT_BF16 && a.end_count >= 0
           && a.end_count <= JUDGE_ACCEPT_MAX_END_IDS
           && (a.scores == nullptr || a.max_draft_len >= 1) && a.weight != nullptr
           && reinterpret_cast<uintptr_t>(a.weight) % 16 == 0
           && reinterpret_cast<uintptr_t>(a.workspace) % sizeof(judge::Key) == 0
           && (a.rows == 0
               || (a.logits != nullptr && a.hidden != nullptr && a.last_token_ids != nullptr
                   && a.edited != nullptr && a.workspace != nullptr))
           && (a.tokens == 0 || a.input_ids != nullptr)
           && (a.requests == 0 || a.context_lengths != nullptr);
}

#ifndef JUDGE_ACCEPT_HOST_BUILD
int launch(void (*kernel)(JudgeAcceptArguments), int64_t blocks, int threads,
    JudgeAcceptArguments const& arguments, void* stream) {
    void* values[] = {const_cast<JudgeAcceptArguments*>(&arguments)};
    return cudaLaunchKernel(reinterpret_cast<void const*>(kernel),
        dim3(static_cast<unsigned>(blocks)), dim3(threads), values, 0,
        static_cast<cudaStream_t>(stream));
}
#endif

template <typename Logit>
int launch_all(JudgeAcceptArguments const& a, void* stream) {
    int const threads = block_size(a.threads);
    int64_t const blocks = copy_blocks(a.rows, a.columns, a.logits_type, a.threads);
    int const error = launch(judge::copy_rows<Logit>, blocks > 0 ? blocks : 1, threads, a, stream);
    // At threshold 1 nothing can be edited: what is left of the second kernel are the scores.
    bool const judging = judge::may_edit(a) || (a.scores != nullptr && a.rows > a.requests);
    if (error != 0 || !judging) {
        return error;
    }
    auto kernel = judge::judge_rows<Logit, judge::F32>;
    if (a.hidden_type == JUDGE_ACCEPT_F16) {
        kernel = judge::judge_rows<Logit, judge::F16>;
    } else if (a.hidden_type == JUDGE_ACCEPT_BF16) {
        kernel = judge::judge_rows<Logit, judge::BF16>;
    }
    return launch(kernel, a.rows, threads, a, stream);
}

}  // namespace

int judge_accept_abi_version(void) {
    return JUDGE_ACCEPT_ABI_VERSION;
}

size_t judge_accept_workspace_size(
    int32_t rows, int32_t columns, int32_t logits_type, int32_t threads) {
    int64_t const blocks = copy_blocks(rows, columns, logits_type, threads);
    return blocks < 0 ? 0 : blocks * sizeof(judge::Key);
}

int launch_judge_accept(JudgeAcceptArguments const* arguments, void* stream) {
    if (arguments == nullptr || !valid(*arguments)) {
        return kInvalidValue;
    }
    return arguments->logits_type == JUDGE_ACCEPT_F32 ? launch_all<judge::F32>(*arguments, stream)
                                                      : launch_all<judge::F16>(*arguments, stream);
}
