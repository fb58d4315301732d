// Rows of a weight times one token, launched early: before a kernel waits for the one before it, all its weights are on
// their way to shared memory, which the small kernels of a decode step leave free. Once there is something to multiply
// them with, they are there.
//
// A warp takes a row (or the two rows that a rotation mixes), whole; a thread reads back only what it copied itself, so
// nothing is waited for but its own copies. Products and sums are float32: eight neighbours of a chunk (16 bytes) in their
// order, chunks lane by lane, then the lanes in a tree. The same bits on every run.

template <int COLUMNS>
struct Rows {
    static_assert(COLUMNS % 8 == 0);
    static constexpr int CHUNKS = COLUMNS / 8, STEPS = (CHUNKS + 31) / 32;
};

// One row on its way to `held`.
template <int COLUMNS>
__device__ __forceinline__ void fetch_row(uint4* held, const uint4* row) {
#pragma unroll
    for (int step = 0; step < Rows<COLUMNS>::STEPS; ++step) {
        int chunk = step * 32 + threadIdx.x % 32;
        if (chunk < Rows<COLUMNS>::CHUNKS) copy_async(held + chunk, row + chunk);
    }
}

__device__ __forceinline__ void add_product(float& sum, word weights, word values) {
    sum = fmaf(low_half(weights), low_half(values), sum);
    sum = fmaf(high_half(weights), high_half(values), sum);
}

// sums[i] = row i · x, in every lane; rows lie COLUMNS apart in `held`.
template <int COLUMNS, int COUNT>
__device__ __forceinline__ void multiply_rows(float (&sums)[COUNT], const uint4* held, const uint4* x) {
    constexpr int CHUNKS = Rows<COLUMNS>::CHUNKS, STEPS = Rows<COLUMNS>::STEPS;
    int lane = threadIdx.x % 32;
    uint4 values[STEPS];
#pragma unroll
    for (int step = 0; step < STEPS; ++step) values[step] = x[min(step * 32 + lane, CHUNKS - 1)];
    copies_done();
#pragma unroll
    for (int step = 0; step < STEPS; ++step) {
        if (step * 32 + lane >= CHUNKS) break;
#pragma unroll
        for (int row = 0; row < COUNT; ++row) {
            uint4 weights = held[row * CHUNKS + step * 32 + lane];
            add_product(sums[row], weights.x, values[step].x);
            add_product(sums[row], weights.y, values[step].y);
            add_product(sums[row], weights.z, values[step].z);
            add_product(sums[row], weights.w, values[step].w);
        }
    }
#pragma unroll
    for (int row = 0; row < COUNT; ++row)
#pragma unroll
        for (int apart = 16; apart; apart /= 2) sums[row] += __shfl_xor_sync(~0u, sums[row], apart);
}

// out[row] = weight · x, plus bias and what was in `out`; either may be missing (null, 0).
// weight [rows, COLUMNS], x [COLUMNS], bias and out [rows], all bfloat16; as many warps as rows of a block.
template <int COLUMNS>
__global__ void __launch_bounds__(512, 1)
    project_one(const uint4* weight, const half_word* bias, const uint4* x, half_word* out, int rows, int add_bias,
                int add_residual) {
    SHARED_MEMORY;
    constexpr int CHUNKS = Rows<COLUMNS>::CHUNKS;
    let_next_begin();
    int warp = threadIdx.x / 32, row = blockIdx.x * (blockDim.x / 32) + warp;
    if (row >= rows) return;
    uint4* held = reinterpret_cast<uint4*>(shared_memory) + warp * CHUNKS;
    fetch_row<COLUMNS>(held, weight + static_cast<long long>(row) * CHUNKS);
    float sums[1] = {add_bias ? to_float(bias[row]) : 0.0f};
    if (threadIdx.x % 32) sums[0] = 0.0f;
    wait_for_previous();
    if (add_residual && threadIdx.x % 32 == 0) sums[0] += to_float(out[row]);
    multiply_rows<COLUMNS>(sums, held, x);
    if (threadIdx.x % 32 == 0) out[row] = to_bfloat16(sums[0]);
}

// Where keys or values of a layer lie: strides in elements.
struct Pages {
    half_word* first;
    int page, place, head;
};

// Query, key and value of one token: the rows of `weight`, heads of 2 · HALF, biases added and rounded to bfloat16; queries
// and keys turned by cosine and sine [HALF]; queries to `query`, keys and values to place `slot` (-1: nowhere) of the cache,
// PAGE_SIZE places a page. A warp takes rows i and i + HALF of one head.
template <int COLUMNS, int HALF>
__global__ void __launch_bounds__(512, 1)
    begin_attention_one(const uint4* weight, const half_word* bias, const uint4* x, const half_word* cosine,
                        const half_word* sine, const long long* slot, half_word* query, half_word* key, half_word* value,
                        int key_page, int key_place, int key_head, int value_page, int value_place, int value_head,
                        int page_size, int query_heads, int kv_heads, int add_bias) {
    SHARED_MEMORY;
    constexpr int CHUNKS = Rows<COLUMNS>::CHUNKS;
    let_next_begin();
    int warp = threadIdx.x / 32, pair = blockIdx.x * (blockDim.x / 32) + warp, head = pair / HALF, spot = pair % HALF;
    if (head >= query_heads + 2 * kv_heads) return;
    uint4* held = reinterpret_cast<uint4*>(shared_memory) + warp * 2 * CHUNKS;
    int row = head * 2 * HALF + spot;
    fetch_row<COLUMNS>(held, weight + static_cast<long long>(row) * CHUNKS);
    fetch_row<COLUMNS>(held + CHUNKS, weight + static_cast<long long>(row + HALF) * CHUNKS);
    float sums[2] = {};
    if (add_bias && threadIdx.x % 32 == 0) sums[0] = to_float(bias[row]), sums[1] = to_float(bias[row + HALF]);
    wait_for_previous();
    float cosine_here = to_float(cosine[spot]), sine_here = to_float(sine[spot]);
    long long place = *slot;
    multiply_rows<COLUMNS>(sums, held, x);
    if (threadIdx.x % 32) return;
    float first = to_float(to_bfloat16(sums[0])), second = to_float(to_bfloat16(sums[1]));
    if (head < query_heads + kv_heads) {
        float turned = first * cosine_here - second * sine_here;
        second = second * cosine_here + first * sine_here;
        first = turned;
    }
    half_word* target = query + head * 2 * HALF;
    if (head >= query_heads) {
        if (place < 0) return;
        bool is_key = head < query_heads + kv_heads;
        Pages pages = is_key ? Pages{key, key_page, key_place, key_head} : Pages{value, value_page, value_place, value_head};
        target = pages.first + place / page_size * pages.page + place % page_size * pages.place +
                 static_cast<long long>(head - query_heads - (is_key ? 0 : kv_heads)) * pages.head;
    }
    target[spot] = to_bfloat16(first);
    target[spot + HALF] = to_bfloat16(second);
}
