// What becomes of an item's sums, which lie in shared memory: SwiGLU of gate and up, or a route's weighted output.
//
// C says how the work is cut (`Cut` of experts_stream.cu). Both have
//   chosen(route): the routes of the columns changed, that of column lane % C::COLUMNS is given;
//   prepare(row): what is wanted of rows `row` … row + ROWS − 1 of all experts' rows, early;
//   finish(sums, route, first_row, columns, turn): one item's results;
//   WAITS: whether activations may not be there yet;
//   wait_for(tile, last), done(tile, items): a block is about to begin with a tile, its last one or not; and has written
//     the results of so many of the tile's items.

// A row of the item and a column, over the warps of the team.
template <class C>
__device__ __forceinline__ float added(const float* sums, int column, int row) {
    float total = 0;
#pragma unroll
    for (int warp = 0; warp < C::TEAM_WARPS; ++warp) total += sums[(warp * C::COLUMNS + column) * C::SUM_STRIDE + row];
    return total;
}

// Which of ITEMS results a thread of a team finishes in round `round`, -1: none; where there are more threads than
// results, the warps take turns.
template <class C, int ITEMS>
__device__ __forceinline__ int item_of(int round, int turn) {
    static_assert(ITEMS % 32 == 0);
    if (C::TEAM <= ITEMS) return round * C::TEAM + threadIdx.x % C::TEAM;
    int item = (threadIdx.x + turn * ITEMS) % C::TEAM;
    return item < ITEMS ? item : -1;
}

template <class C, int ITEMS>
__device__ __forceinline__ constexpr int rounds_of() {
    return C::TEAM <= ITEMS ? ITEMS / C::TEAM : 1;
}

template <class C>
struct FinishGateUp {
    static constexpr bool WAITS = false;

    const half_word* bias;
    half_word* inner;
    int* ready;  // for each tile, of how many items the results are written
    int inner_count;
    float alpha, limit;
    float gate_bias, up_bias;

    __device__ __forceinline__ void chosen(int) {}

    __device__ __forceinline__ void prepare(long long row) {
        int pair = threadIdx.x % (C::ROWS / 2);
        gate_bias = to_float(bias[row + 2 * pair]);
        up_bias = to_float(bias[row + 2 * pair + 1]);
    }

    __device__ __forceinline__ void finish(const float* sums, int route, int first_row, int columns, int turn) const {
        constexpr int ITEMS = C::COLUMNS * C::ROWS / 2;
#pragma unroll
        for (int round = 0; round < rounds_of<C, ITEMS>(); ++round) {
            int item = item_of<C, ITEMS>(round, turn);
            if (item < 0) return;
            int pair = item % (C::ROWS / 2), column = item / (C::ROWS / 2), target = __shfl_sync(~0u, route, column);
            if (column >= columns) continue;
            float gate = least(added<C>(sums, column, 2 * pair) + gate_bias, limit);
            float up = least(greatest(added<C>(sums, column, 2 * pair + 1) + up_bias, -limit), limit);
            float value = (up + 1.0f) * gate / (1.0f + exponential(-gate * alpha));
            inner[static_cast<long long>(target) * inner_count + first_row / 2 + pair] = to_bfloat16(value);
        }
    }

    __device__ __forceinline__ void wait_for(int, bool) {}

    __device__ __forceinline__ void done(int tile, int items) const {
        __syncthreads();
        if (threadIdx.x == 0) add_released(ready + tile, items);
    }
};

template <class C>
struct FinishDown {
    static constexpr bool WAITS = true;

    const half_word* bias;
    const float* weight;
    float* out;
    int* ready;  // how many blocks wait for nothing any more; then for each tile, how many items of gate_up are written
    int wanted;  // of them
    int hidden;
    int left_before;  // blocks that waited for nothing any more before this one, -1: it still does
    float row_bias, lane_weight;

    __device__ __forceinline__ void chosen(int route) { lane_weight = weight[route]; }

    __device__ __forceinline__ void prepare(long long row) { row_bias = to_float(bias[row + threadIdx.x % C::ROWS]); }

    __device__ __forceinline__ void finish(const float* sums, int route, int first_row, int columns, int turn) const {
        constexpr int ITEMS = C::COLUMNS * C::ROWS;
#pragma unroll
        for (int round = 0; round < rounds_of<C, ITEMS>(); ++round) {
            int item = item_of<C, ITEMS>(round, turn);
            if (item < 0) return;
            int row = item % C::ROWS, column = item / C::ROWS, target = __shfl_sync(~0u, route, column);
            float route_weight = __shfl_sync(~0u, lane_weight, column);
            if (column >= columns) continue;
            float value = (added<C>(sums, column, row) + row_bias) * route_weight;
            out[static_cast<long long>(target) * hidden + first_row + row] = value;
        }
    }

    __device__ __forceinline__ void wait_for(int tile, bool last) {
        if (threadIdx.x != 0) return;
        while (load_acquired(ready + 1 + tile) != wanted) continue;
        if (last) left_before = add_one(ready);
    }

    __device__ __forceinline__ void done(int, int) {}

    // The last block leaves zeros behind.
    __device__ __forceinline__ void leave(int tiles) {
        if (threadIdx.x != 0) return;
        if (left_before < 0) left_before = add_one(ready);
        if (left_before + 1 < static_cast<int>(gridDim.x)) return;
#pragma unroll 1
        for (int number = 0; number <= tiles; ++number) ready[number] = 0;
    }
};
