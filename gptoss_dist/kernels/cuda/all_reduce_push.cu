// One-shot all-reduce in which every rank writes its partial rows to all others, with bias, residual and RMSNorm.
//
// A value does not travel alone: eight bytes of it go in sixteen, each word of four followed by the number of the call, as
// NCCL's protocol LL sends them (nccl/src/device/prims_ll.h). A processor writes each half of the sixteen at once, so
// whoever sees the number sees the value: no flag after the data, no fence, and the way over the link is gone once, not
// there and back. What is read lies in one's own memory.
//
// Slots: [2, WORLD, max_tokens, UNITS] of sixteen bytes on every rank, zeros before the first call. In call n block p takes
// rows p, p + gridDim.x, …, and slots of n mod 2. A slot is written again two calls later, by a rank that has the slots of
// the call between; whoever filled those had ended this one. Blocks count their calls on the device, from 1, alike on all
// ranks; zero is the number of a slot that was never filled, so 2 follows the last number (a slot that nobody has written
// for exactly one such round of four billion calls would be taken for new). Sums are formed in rank order in float32, from
// what was sent: the same bits on every rank.

constexpr int THREADS = 384;

__device__ __forceinline__ void add_four(float (&sums)[4], uint2 values) {
    sums[0] += low_half(values.x), sums[1] += high_half(values.x);
    sums[2] += low_half(values.y), sums[3] += high_half(values.y);
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

// residual += Σ partials + bias, out = its RMSNorm · weight; without `norm`: out = Σ partials.
// partial, residual, out [tokens, HIDDEN], bias and weight [HIDDEN], all bfloat16; calls [gridDim.x].
template <int WORLD, int HIDDEN>
__global__ void __launch_bounds__(THREADS, 1)
    reduce_push(const uint2* partial, const uint2* bias, uint2* residual, const uint2* weight, uint2* out,
                const unsigned long long* slots, word* calls, int tokens, int max_tokens, int rank, int add_bias,
                int norm, float epsilon) {
    SHARED_MEMORY;
    using P = Push<WORLD, HIDDEN>;
    let_next_begin();
    wait_for_previous();
    P push = {slots, rank, max_tokens, number_after(calls[blockIdx.x])};
    for (int token = blockIdx.x; token < tokens; token += gridDim.x) {
        long long row = static_cast<long long>(token) * P::UNITS;
        uint2 mine[P::ROUNDS];
#pragma unroll
        for (int round = 0; round < P::ROUNDS; ++round) {
            int unit = round * THREADS + threadIdx.x;
            if (unit >= P::UNITS) break;
            mine[round] = partial[row + unit];
            push.send(mine[round], token, unit);
        }
        float squares = 0;
#pragma unroll
        for (int round = 0; round < P::ROUNDS; ++round) {
            int unit = round * THREADS + threadIdx.x;
            if (unit >= P::UNITS) break;
            float sums[4] = {};
            push.add(sums, mine[round], token, unit);
            if (add_bias) add_four(sums, bias[unit]);
            if (norm) add_four(sums, residual[row + unit]);
            mine[round] = {to_bfloat16s(sums[0], sums[1]), to_bfloat16s(sums[2], sums[3])};
            if (!norm) {
                out[row + unit] = mine[round];
                continue;
            }
            residual[row + unit] = mine[round];
            float rounded[4] = {};
            add_four(rounded, mine[round]);
#pragma unroll
            for (int part = 0; part < 4; ++part) squares = fmaf(rounded[part], rounded[part], squares);
        }
        if (!norm) continue;
        float scale = rsqrtf(block_sum(squares, reinterpret_cast<float*>(shared_memory)) / HIDDEN + epsilon);
#pragma unroll
        for (int round = 0; round < P::ROUNDS; ++round) {
            int unit = round * THREADS + threadIdx.x;
            if (unit >= P::UNITS) break;
            float values[4] = {}, by[4] = {};
            add_four(values, mine[round]);
            add_four(by, weight[unit]);
#pragma unroll
            for (int part = 0; part < 4; ++part) values[part] = by[part] * (values[part] * scale);
            out[row + unit] = {to_bfloat16s(values[0], values[1]), to_bfloat16s(values[2], values[3])};
        }
    }
    __syncthreads();  // every thread has read the number
    if (threadIdx.x == 0) calls[blockIdx.x] = push.call;
}
