// One-shot all-reduce in which every rank writes its partial rows to all others, with residual and RMSNorm. A partial may
// itself be a sum: that of a token's routes, as the experts leave them.
//
// A value does not travel alone: eight bytes of it go in sixteen, each word of four followed by the number of the call, as
// NCCL's protocol LL sends them (nccl/src/device/prims_ll.h). A processor writes each half of the sixteen at once, so
// whoever sees the number sees the value: no flag after the data, no fence, and the way over the link is gone once, not
// there and back. What is read lies in one's own memory.
//
// Slots: [2, WORLD, max_tokens, UNITS] of sixteen bytes on every rank, zeros before the first call. In call n block p takes
// rows p, p + gridDim.x, …, and slots of n mod 2: it sends all of them, then adds all. A slot is written again two calls
// later, by a rank that has the slots of the call between; whoever filled those had ended this one. Blocks count their
// calls on the device, from 1, alike on all ranks; zero is the number of a slot that was never filled, so 2 follows the
// last number (a slot that nobody has written for exactly one such round of four billion calls would be taken for new).
// Sums are formed in rank order in float32, from what was sent: the same bits on every rank.

constexpr int THREADS = 384;

__device__ __forceinline__ void add_four(float (&sums)[4], uint2 values) {
    sums[0] += low_half(values.x), sums[1] += high_half(values.x);
    sums[2] += low_half(values.y), sums[3] += high_half(values.y);
}

__device__ __forceinline__ void add_four(float (&sums)[4], float4 values) {
    sums[0] += values.x, sums[1] += values.y, sums[2] += values.z, sums[3] += values.w;
}

__device__ __forceinline__ uint2 rounded(const float (&sums)[4]) {
    return {to_bfloat16s(sums[0], sums[1]), to_bfloat16s(sums[2], sums[3])};
}

template <int WORLD, int HIDDEN>
struct Push {
    static_assert(HIDDEN % 4 == 0);
    static constexpr int UNITS = HIDDEN / 4, ROUNDS = (UNITS + THREADS - 1) / THREADS;

    const unsigned long long* slots;  // where this process finds every rank's
    int rank, max_tokens;
    word call;

    __device__ __forceinline__ uint4* slot(int of, int from, int token, int unit) const {
        long long row = (static_cast<long long>(call & 1) * WORLD + from) * max_tokens + token;
        return reinterpret_cast<uint4*>(slots[of]) + row * UNITS + unit;
    }

    __device__ __forceinline__ void send(uint2 values, int token, int unit) const {
#pragma unroll
        for (int peer = 0; peer < WORLD; ++peer)
            if (peer != rank) store_numbered(slot(peer, rank, token, unit), values, call);
    }

    // Four values over all ranks, `mine` among them.
    __device__ __forceinline__ void add(float (&sums)[4], uint2 mine, int token, int unit) const {
#pragma unroll
        for (int from = 0; from < WORLD; ++from) {
            uint2 values = mine;
            if (from != rank) values = load_numbered(slot(rank, from, token, unit), call);
            add_four(sums, values);
        }
    }
};

// This rank's partial of four columns. Without ROUTES the rows are partials; with them row t · ROUTES + k is what route k
// of token t gives, and counts if its expert is here: index, one for each row, is among 0 … experts − 1.
template <int HIDDEN, int ROUTES, class Four>
__device__ __forceinline__ uint2 partial_of(const Four* rows, const int* index, int experts, int token, int unit) {
    constexpr int UNITS = HIDDEN / 4;
    if constexpr (ROUTES == 0) {
        return rows[static_cast<long long>(token) * UNITS + unit];
    } else {
        Four found[ROUTES];
#pragma unroll
        for (int route = 0; route < ROUTES; ++route)  // others' rows are memory too, whatever it holds
            found[route] = rows[(static_cast<long long>(token) * ROUTES + route) * UNITS + unit];
        float sums[4] = {};
#pragma unroll
        for (int route = 0; route < ROUTES; ++route)
            if (static_cast<unsigned>(index[token * ROUTES + route]) < static_cast<unsigned>(experts))
                add_four(sums, found[route]);
        return rounded(sums);
    }
}

// Never zero, and even after odd, so that the slots alternate also where the numbers begin again.
__device__ __forceinline__ word number_after(word call) { return call == ~0u ? 2 : call + 1; }

// Over all threads of the block, in every one; the same order always.
__device__ __forceinline__ float block_sum(float value, float* partial) {
#pragma unroll
    for (int apart = 16; apart; apart /= 2) value += __shfl_xor_sync(~0u, value, apart);
    __syncthreads();  // what was there before is read
    if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = value;
    __syncthreads();
    float total = 0;
#pragma unroll
    for (int warp = 0; warp < THREADS / 32; ++warp) total += partial[warp];
    return total;
}

// residual += Σ partials, out = its RMSNorm · weight; without `norm`: out = Σ partials.
// residual, out [tokens, HIDDEN] and weight [HIDDEN] are bfloat16; rows and index as `partial_of` has them, rows bfloat16
// (uint2) or float32 (float4); calls [gridDim.x]. Until a row is added `out` holds this rank's partial.
template <int WORLD, int HIDDEN, int ROUTES, class Four>
__global__ void __launch_bounds__(THREADS, 1)
    reduce_push(const Four* rows, const int* index, uint2* residual, const uint2* weight, uint2* out,
                const unsigned long long* slots, word* calls, int tokens, int max_tokens, int rank, int experts,
                int norm, float epsilon) {
    SHARED_MEMORY;
    using P = Push<WORLD, HIDDEN>;
    uint2 by[P::ROUNDS] = {};  // weights of the norm, which no kernel before has written
    if (norm)
#pragma unroll
        for (int round = 0; round < P::ROUNDS; ++round)
            if (int unit = round * THREADS + threadIdx.x; unit < P::UNITS) by[round] = weight[unit];
    let_next_begin();
    wait_for_previous();
    P push = {slots, rank, max_tokens, number_after(calls[blockIdx.x])};
    for (int token = blockIdx.x; token < tokens; token += gridDim.x) {
#pragma unroll
        for (int round = 0; round < P::ROUNDS; ++round) {
            int unit = round * THREADS + threadIdx.x;
            if (unit >= P::UNITS) break;
            uint2 mine = partial_of<HIDDEN, ROUTES>(rows, index, experts, token, unit);
            push.send(mine, token, unit);
            out[static_cast<long long>(token) * P::UNITS + unit] = mine;
        }
    }
    for (int token = blockIdx.x; token < tokens; token += gridDim.x) {
        long long row = static_cast<long long>(token) * P::UNITS;
        uint2 mine[P::ROUNDS], before[P::ROUNDS];
#pragma unroll
        for (int round = 0; round < P::ROUNDS; ++round) {
            int unit = round * THREADS + threadIdx.x;
            if (unit >= P::UNITS) break;
            mine[round] = out[row + unit];
            if (norm) before[round] = residual[row + unit];
        }
        float squares = 0;
#pragma unroll
        for (int round = 0; round < P::ROUNDS; ++round) {
            int unit = round * THREADS + threadIdx.x;
            if (unit >= P::UNITS) break;
            float sums[4] = {};
            push.add(sums, mine[round], token, unit);
            if (norm) add_four(sums, before[round]);
            mine[round] = rounded(sums);
            if (!norm) {
                out[row + unit] = mine[round];
                continue;
            }
            residual[row + unit] = mine[round];
            float values[4] = {};
            add_four(values, mine[round]);
#pragma unroll
            for (int part = 0; part < 4; ++part) squares = fmaf(values[part], values[part], squares);
        }
        if (!norm) continue;
        float scale = rsqrtf(block_sum(squares, reinterpret_cast<float*>(shared_memory)) / HIDDEN + epsilon);
#pragma unroll
        for (int round = 0; round < P::ROUNDS; ++round) {
            int unit = round * THREADS + threadIdx.x;
            if (unit >= P::UNITS) break;
            float values[4] = {}, factors[4] = {};
            add_four(values, mine[round]);
            add_four(factors, by[round]);
#pragma unroll
            for (int part = 0; part < 4; ++part) values[part] = factors[part] * (values[part] * scale);
            out[row + unit] = rounded(values);
        }
    }
    __syncthreads();  // every thread has read the number
    if (threadIdx.x == 0) calls[blockIdx.x] = push.call;
}
