// Packed experts for many routes an expert: a grouped product on Hopper's tensor cores.
//
// A grid that fills the chip once, a block for each multiprocessor, which takes items in turn: ROWS weight rows of one
// expert and up to COLUMNS of its routes. Three warpgroups: one copies, two multiply, each 128 of the rows. The copies
// fill a ring of STAGES steps in shared memory, a step being four groups of 32 contracted columns: the routes'
// activations, which lie in memory as the tensor cores read them, in two pieces; codes and scales 16 bytes at a time. Of
// its words a thread makes the left operands of its own products, in registers, two sets of them: while the products of
// one group run, the codes of the next are unpacked, and the other warpgroup's products fill what is left. The copies of
// an item begin while the one before is still multiplied.
//
// Activations: [planes, P, 128 bytes], a plane for each two groups, in it a row for each route in the order of the list,
// in it 64 columns in the order of `mxfp4_unpack.by_twos` (thread t of four holds word t of a group:
// gptoss_dist/kernels/mxfp4_layout.py), swizzled by the route's place in its tile (`swizzled_rows`). `gather_routes` and
// the end of gate_up write them so.
//
// Warp w of a warpgroup has rows 32·w … 32·w + 31 of its 128, as two tiles of 16; products of 64 rows take a tile of
// each warp. An item multiplies the narrowest of 32, 64, 96 and 128 columns that holds its routes; what lies in the
// others, and in rows that there are not, comes to nothing. The ring has room for COLUMNS of them, 64 or 128: the
// narrower its steps, the more of them are under way. Every sum is added up by one thread in the order of the columns:
// the same bits on every run.

// One item: sums, bias, and what `finish` makes of them, 32 columns at a time, a lane for each.
template <int GROUPS, int WIDTH, int STAGES, int COLUMNS, class Finish>
__device__ __forceinline__ void multiply_item(Ring<STAGES, COLUMNS>& ring, const Items& items, const Item& item,
                                              const Unknown& unknown, const Finish& finish) {
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 8, first_row = item.row + warp * 32;
    float sums[2][WIDTH / 2] = {};
    multiply_steps<GROUPS>(sums, ring, unknown);
    if (first_row >= items.row_count) return;
    float bias[4];
#pragma unroll
    for (int part = 0; part < 4; ++part) bias[part] = finish.bias_of(item.expert, first_row + part * 8 + lane / 4);
    float* buffer = ring.sums(warp);
#pragma unroll
    for (int chunk = 0; chunk < WIDTH / 32; ++chunk) {
        __syncwarp();
#pragma unroll
        for (int tile = 0; tile < 2; ++tile)
#pragma unroll
            for (int i = 0; i < 16; ++i)
                buffer[(i / 4 * 8 + lane % 4 * 2 + i % 2) * SUM_STRIDE + tile * 16 + i / 2 % 2 * 8 + lane / 4] =
                    sums[tile][chunk * 16 + i] + bias[tile * 2 + i / 2 % 2];
        __syncwarp();
        int column = chunk * 32 + lane;
        if (column < item.columns)
            finish.finish(buffer + lane * SUM_STRIDE, items, item.first + column, column, first_row);
    }
}

// Weight rows that there are not: the steps pass by.
template <int GROUPS, int STAGES, int COLUMNS>
__device__ __forceinline__ void skip_item(Ring<STAGES, COLUMNS>& ring) {
#pragma unroll 1
    for (int step = 0; step < (GROUPS + STEP - 1) / STEP; ++step, ring.next()) {
        barrier_wait(ring.full(), ring.parity);
        __syncwarp();
        if (threadIdx.x % 32 == 0) barrier_arrive(ring.empty());
    }
}

// Every item of this block.
template <int GROUPS, int STAGES, int COLUMNS, class Finish>
__device__ __forceinline__ void group(const Items& items, const uint4* activations, const uint4* codes,
                                      const uint4* scales, const Finish& finish) {
    SHARED_MEMORY;
    Ring<STAGES, COLUMNS> ring = {shared_memory, 0, 0};
    if (threadIdx.x == 0)
        for (int stage = 0; stage < STAGES; ++stage) {
            barrier_make(ring.full() + stage, COPYING + 1);
            barrier_make(ring.empty() + stage, MULTIPLYING / 32);
        }
    publish_barriers();
    __syncthreads();
    Item item;
    if (threadIdx.x >= MULTIPLYING) {
        give_registers<40>();
#pragma unroll 1
        for (int number = blockIdx.x; number < items.count(); number += gridDim.x)
            if (take(item, items, number)) copy_item<GROUPS>(ring, items, item, activations, codes, scales);
        copies_done();  // a block does not end before what it has begun
        return;
    }
    take_registers<232>();
    word one = gridDim.y;
    const Unknown unknown = {static_cast<int>(one - 1), {one << 2, one << 4, one << 6}};
#pragma unroll 1
    for (int number = blockIdx.x; number < items.count(); number += gridDim.x) {
        if (!take(item, items, number)) continue;
        if (item.row + threadIdx.x / WARPGROUP * 128 >= items.row_count)
            skip_item<GROUPS>(ring);
        else if (item.columns <= 32)
            multiply_item<GROUPS, 32>(ring, items, item, unknown, finish);
        else if (COLUMNS == 64 || item.columns <= 64)
            multiply_item<GROUPS, 64>(ring, items, item, unknown, finish);
        else if (item.columns <= 96)
            multiply_item<GROUPS, 96>(ring, items, item, unknown, finish);
        else
            multiply_item<GROUPS, 128>(ring, items, item, unknown, finish);
    }
}

// The activations of every route, from hidden [T, 32 · GROUPS]: a block for GATHERED columns of a tile.
constexpr int GATHERED = 8, GATHERING = 256;

template <int GROUPS>
__global__ void __launch_bounds__(GATHERING, 4)
    gather_routes(const uint4* hidden, const int* order, const int* tile_expert, const int* tile_first,
                  const int* tile_count, uint4* gathered, int routes, int top_k) {
    int slot = blockIdx.x, begin = blockIdx.y * GATHERED;
    if (tile_expert[slot] < 0) return;
    int first = tile_first[slot], end = min(begin + GATHERED, tile_count[slot]);
    for (int number = begin; number < end; ++number) {
        const uint4* from = hidden + static_cast<long long>(order[first + number] / top_k) * (GROUPS * 4);
        for (int half = threadIdx.x; half < GROUPS * 2; half += GATHERING) {
            uint4 low = from[2 * half], high = from[2 * half + 1];
            *half_group(gathered, routes, first + number, number, half * 16, 0) = make_uint4(low.x, low.z, high.x, high.z);
            *half_group(gathered, routes, first + number, number, half * 16, 1) = make_uint4(low.y, low.w, high.y, high.w);
        }
    }
}

// Clamped SwiGLU of the gate and up rows of every route's expert, bfloat16: `inner` and `gathered` are activations as
// above, of row_count / 2 and 32 · GROUPS columns; codes [E, row_count, GROUPS, 16 bytes], scales [E, row_count / 32,
// GROUPS, 32 bytes], bias [E, row_count].
template <int GROUPS, int STAGES, int COLUMNS>
__global__ void __launch_bounds__(MULTIPLYING + COPYING, 1)
    gate_up_grouped(const uint4* gathered, const int* order, const int* tile_expert, const int* tile_first,
                    const int* tile_count, const uint4* codes, const uint4* scales, const half_word* bias, void* inner,
                    int routes, int slots, int row_count, float alpha, float limit) {
    Items items = {order, tile_expert, tile_first, tile_count, slots, row_count, routes};
    FinishGateUp finish = {bias, inner, row_count, -1.4426950408889634f * alpha, limit};
    group<GROUPS, STAGES, COLUMNS>(items, gathered, codes, scales, finish);
}

// out[route] = weight · (rows · inner[route] + bias); codes as above, weight [P], out [P, row_count].
template <int GROUPS, int STAGES, int COLUMNS, bool WIDE>
__global__ void __launch_bounds__(MULTIPLYING + COPYING, 1)
    down_grouped(const uint4* inner, const int* order, const int* tile_expert, const int* tile_first,
                 const int* tile_count, const uint4* codes, const uint4* scales, const half_word* bias,
                 const float* weight, void* out, int routes, int slots, int row_count) {
    Items items = {order, tile_expert, tile_first, tile_count, slots, row_count, routes};
    FinishDown<WIDE> finish = {bias, weight, out, row_count};
    group<GROUPS, STAGES, COLUMNS>(items, inner, codes, scales, finish);
}
