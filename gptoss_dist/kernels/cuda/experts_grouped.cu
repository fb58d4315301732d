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
// Activations: [planes, P, 128 bytes], a plane for each two groups, in it a row for each route in the order of the list, in it
// 64 columns in the order of `mxfp4_unpack.by_twos` (thread t of four holds word t of a group: gptoss_dist/kernels/
// mxfp4_layout.py), swizzled by the route's place in its tile (`swizzled_rows`). `gather_routes` and the end of gate_up
// write them so.
//
// Warp w of a warpgroup has rows 32·w … 32·w + 31 of its 128, as two tiles of 16; products of 64 rows take a tile of
// each warp. An item multiplies the narrowest of 32, 64, 96 and 128 columns that holds its routes; what lies in the
// others, and in rows that there are not, comes to nothing. Every sum is added up by one thread in the order of the
// columns: the same bits on every run.

constexpr int ROWS = 256, COLUMNS = 128, WARPGROUP = 128, COPYING = 128, MULTIPLYING = 256;
constexpr int SUM_STRIDE = 36;  // floats of a column of 32 sums: what a warp writes and reads spreads over all banks
constexpr int STEP = 4;         // groups of a step of the ring
constexpr int PLANE_BYTES = COLUMNS * 128, ACTIVE_BYTES = PLANE_BYTES * STEP / 2;
constexpr int CODE_BYTES = ROWS * STEP * 16, SCALE_BYTES = ROWS * STEP;
constexpr int SUM_BYTES = MULTIPLYING / 32 * 32 * SUM_STRIDE * 4;

// The ring, and how far a thread is in it.
template <int STAGES>
struct Ring {
    unsigned char* memory;
    int stage, parity;

    __device__ __forceinline__ unsigned char* active() const { return memory + stage * ACTIVE_BYTES; }
    __device__ __forceinline__ unsigned char* codes() const {
        return memory + STAGES * ACTIVE_BYTES + stage * CODE_BYTES;
    }
    __device__ __forceinline__ unsigned char* scales() const {
        return memory + STAGES * (ACTIVE_BYTES + CODE_BYTES) + stage * SCALE_BYTES;
    }
    __device__ __forceinline__ float* sums(int warp) const {
        return reinterpret_cast<float*>(memory + STAGES * (ACTIVE_BYTES + CODE_BYTES + SCALE_BYTES)) +
               warp * 32 * SUM_STRIDE;
    }
    __device__ __forceinline__ barrier* full() const {
        return reinterpret_cast<barrier*>(memory + STAGES * (ACTIVE_BYTES + CODE_BYTES + SCALE_BYTES) + SUM_BYTES) +
               stage;
    }
    __device__ __forceinline__ barrier* empty() const { return full() + STAGES; }
    __device__ __forceinline__ void next() {
        if (++stage == STAGES) stage = 0, parity ^= 1;
    }
};

// The list of gptoss_dist/kernels/experts_routes.py, and the weight rows that each of its tiles meets.
struct Items {
    const int *order, *tile_expert, *tile_first, *tile_count;
    int slots, row_count, routes;

    __device__ __forceinline__ int row_tiles() const { return (row_count + ROWS - 1) / ROWS; }
    __device__ __forceinline__ int count() const { return slots * row_tiles(); }
};

struct Item {
    int expert, first, columns, row;
};

// False for a tile that is not needed.
__device__ __forceinline__ bool take(Item& item, const Items& items, int number) {
    int slot = number / items.row_tiles();
    item.expert = items.tile_expert[slot];
    if (item.expert < 0) return false;
    item.first = items.tile_first[slot], item.columns = items.tile_count[slot];
    item.row = (number - slot * items.row_tiles()) * ROWS;
    return true;
}

// The copying warpgroup's part of one item. Rows that there are not keep what was there.
template <int GROUPS, int STAGES>
__device__ __forceinline__ void copy_item(Ring<STAGES>& ring, const Items& items, const Item& item,
                                          const uint4* activations, const uint4* codes, const uint4* scales) {
    constexpr int STEPS = (GROUPS + STEP - 1) / STEP, PARTS = ROWS / 32, PLANES = (GROUPS + 1) / 2;
    int thread = threadIdx.x % COPYING, chunk = thread % 4, row = item.row + thread / 4;
    int scale_tile = item.row / 32 + thread / 8, bytes = item.columns * 128;
    long long expert_row = static_cast<long long>(item.expert) * items.row_count;
    long long plane = static_cast<long long>(items.routes) * 8;
    const uint4* active_from = activations + static_cast<long long>(item.first) * 8;
    const uint4* code_from = codes + (expert_row + row) * GROUPS + chunk;
    const uint4* scale_from = scales + (expert_row / 32 + scale_tile) * (GROUPS * 2) + thread % 8;
    bool scaled = thread < ROWS / 32 * 8 && scale_tile < items.row_count / 32;
    int code_to = thread / 4 * 64 + (chunk ^ thread / 8 % 4) * 16;
#pragma unroll 1
    for (int step = 0; step < STEPS; ++step, ring.next()) {
        int groups = min(GROUPS - step * STEP, STEP);
        barrier_wait(ring.empty(), ring.parity ^ 1);
        if (thread == 0) {
            bool second = step * 2 + 1 < PLANES;
            barrier_expect(ring.full(), second ? 2 * bytes : bytes);
            copy_bulk(ring.active(), active_from, bytes, ring.full());
            if (second) copy_bulk(ring.active() + PLANE_BYTES, active_from + plane, bytes, ring.full());
        }
        uint4* to = reinterpret_cast<uint4*>(ring.codes() + code_to);
#pragma unroll
        for (int part = 0; part < PARTS; ++part)
            if (row + part * 32 < items.row_count && chunk < groups)
                copy_async(to + part * 128, code_from + part * 32 * GROUPS);
        if (scaled && thread % 8 < 2 * groups)
            copy_async(reinterpret_cast<uint4*>(ring.scales() + thread * 16), scale_from);
        barrier_arrive_copied(ring.full());
        active_from += 2 * plane, code_from += STEP, scale_from += 2 * STEP;
    }
}

// A thread's words of a step's groups and four rows, and the scales of these.
struct Packed {
    word codes[STEP][4], scales[STEP];
};

// Where a thread finds them in the ring's first step: the codes of each group, and the scales.
struct PackedPlace {
    const unsigned char* memory;
    int codes[STEP], scales;

    __device__ __forceinline__ void read(Packed& packed, int group, int stage) const {
        const unsigned char* from = memory + codes[group] + stage * CODE_BYTES;
#pragma unroll
        for (int part = 0; part < 4; ++part)
            packed.codes[group][part] = *reinterpret_cast<const word*>(from + part * (8 * 64));
        packed.scales[group] = *reinterpret_cast<const word*>(memory + scales + stage * SCALE_BYTES + group * 32);
    }
};

template <int STAGES>
__device__ __forceinline__ PackedPlace packed_place(const Ring<STAGES>& ring) {
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 8;
    int codes = STAGES * ACTIVE_BYTES + (warp * 32 + lane / 4) * 64 + lane % 4 * 4;
    PackedPlace place = {ring.memory, {}, STAGES * (ACTIVE_BYTES + CODE_BYTES) + warp * 128 + lane / 4 * 4};
#pragma unroll
    for (int group = 0; group < STEP; ++group) {
        place.codes[group] = codes + (group ^ lane / 8) * 16;
        hold(place.codes[group]);
    }
    hold(place.scales);
    return place;
}

// The left operands of a group: for each tile of 16 rows the products of its first and of its second 16 columns.
__device__ __forceinline__ void unpack_group(const Packed& packed, int group, const Shifts& left, word (&a)[4][4]) {
    const word* codes = packed.codes[group];
    word scales = packed.scales[group], made[2][2][4];
    unpack(codes[0], codes[1], scale_at<0>(scales), scale_at<1>(scales), made[0], left);
    unpack(codes[2], codes[3], scale_at<2>(scales), scale_at<3>(scales), made[1], left);
#pragma unroll
    for (int product = 0; product < 4; ++product)
#pragma unroll
        for (int part = 0; part < 4; ++part) a[product][part] = made[product / 2][product % 2][part];
}

// What the compiler does not know.
struct Unknown {
    int never;  // 0
    Shifts left;
};

// Left operands of two groups, which take turns, and what a thread keeps.
template <int STAGES>
struct Products {
    word a[2][4][4];
    PackedPlace place;
    Unknown unknown;
    word rows, kept_at;
    barrier *full, *empty;
    bool arrives;
};

// One step of the ring with GROUPS_HERE groups, after which the step before it, at `before`, is done with.
template <int GROUPS_HERE, int STAGES, int HALF_WIDTH>
__device__ __forceinline__ void multiply_step(float (&sums)[2][HALF_WIDTH], Products<STAGES>& products,
                                              const Ring<STAGES>& ring, bool first, int before) {
    barrier_wait(products.full + ring.stage, ring.parity);
    Packed packed;
#pragma unroll
    for (int group = 0; group < GROUPS_HERE; ++group) products.place.read(packed, group, ring.stage);
    word rows = products.rows + ring.stage * (ACTIVE_BYTES / 16);
#pragma unroll
    for (int group = 0; group < GROUPS_HERE; ++group) {
        word(&a)[4][4] = products.a[group % 2];
        unpack_group(packed, group, products.unknown.left, a);
        begin_products();
#pragma unroll
        for (int half = 0; half < 2; ++half)
#pragma unroll
            for (int tile = 0; tile < 2; ++tile)
                multiply_add(sums[tile], a[2 * tile + half],
                             rows + group / 2 * (PLANE_BYTES / 16) + group % 2 * 4 + half * 2);
        commit_products();
        wait_for_products<1>();
        keep(products.a[1 - group % 2], products.unknown.never, products.kept_at);
        if (group == 0 && !first && products.arrives) barrier_arrive(products.empty + before);
    }
}

// The sums of a warpgroup's 128 rows, of which there is one at least, and WIDTH columns.
template <int GROUPS, int STAGES, int HALF_WIDTH>
__device__ __forceinline__ void multiply_steps(float (&sums)[2][HALF_WIDTH], Ring<STAGES>& ring,
                                               const Unknown& unknown) {
    Products<STAGES> products = {{},
                                 packed_place(ring),
                                 unknown,
                                 swizzled_rows(ring.memory),
                                 shared_address(ring.sums(threadIdx.x / 32 % 8)),
                                 ring.full() - ring.stage,
                                 ring.empty() - ring.stage,
                                 threadIdx.x % 32 == 0};
    int before = 0;
#pragma unroll 1
    for (int step = 0; step < GROUPS / STEP; ++step) {
        multiply_step<STEP>(sums, products, ring, step == 0, before);
        before = ring.stage;
        ring.next();
    }
    if (GROUPS % STEP > 0) {
        multiply_step<GROUPS % STEP>(sums, products, ring, GROUPS < STEP, before);
        before = ring.stage;
        ring.next();
    }
    wait_for_products<0>();
    keep(products.a[1 - GROUPS % 2], unknown.never, products.kept_at);
    if (products.arrives) barrier_arrive(products.empty + before);
}

// One item: sums, bias, and what `finish` makes of them, 32 columns at a time, a lane for each.
template <int GROUPS, int WIDTH, int STAGES, class Finish>
__device__ __forceinline__ void multiply_item(Ring<STAGES>& ring, const Items& items, const Item& item,
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
template <int GROUPS, int STAGES>
__device__ __forceinline__ void skip_item(Ring<STAGES>& ring) {
#pragma unroll 1
    for (int step = 0; step < (GROUPS + STEP - 1) / STEP; ++step, ring.next()) {
        barrier_wait(ring.full(), ring.parity);
        __syncwarp();
        if (threadIdx.x % 32 == 0) barrier_arrive(ring.empty());
    }
}

// Every item of this block.
template <int GROUPS, int STAGES, class Finish>
__device__ __forceinline__ void group(const Items& items, const uint4* activations, const uint4* codes,
                                      const uint4* scales, const Finish& finish) {
    SHARED_MEMORY;
    Ring<STAGES> ring = {shared_memory, 0, 0};
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
        else if (item.columns <= 64)
            multiply_item<GROUPS, 64>(ring, items, item, unknown, finish);
        else if (item.columns <= 96)
            multiply_item<GROUPS, 96>(ring, items, item, unknown, finish);
        else
            multiply_item<GROUPS, 128>(ring, items, item, unknown, finish);
    }
}

// Where 16 columns from `column` on, a multiple of 16, stand in the activations of place `place` of the list, column
// `number` of its tile: two chunks, in turn.
__device__ __forceinline__ uint4* half_group(void* activations, int routes, int place, int number, int column, int chunk) {
    long long row = static_cast<long long>(column / 64) * routes + place;
    return static_cast<uint4*>(activations) + row * 8 + ((column % 64 / 8 + chunk) ^ number % 8);
}

// Clamped SwiGLU of gate (even) and up (odd) rows: half a group.
struct FinishGateUp {
    const half_word* bias;
    void* inner;
    int row_count;
    float steepness, limit;  // -alpha · log2(e)

    __device__ __forceinline__ float bias_of(int expert, int row) const {
        return to_float(bias[static_cast<long long>(expert) * row_count + row]);
    }

    __device__ __forceinline__ float value_of(const float* sums) const {
        float gate = fminf(sums[0], limit), up = fminf(fmaxf(sums[1], -limit), limit);
        return (up + 1.0f) * gate * reciprocal(1.0f + power_of_two(gate * steepness));
    }

    __device__ __forceinline__ void finish(const float* sums, const Items& items, int place, int number, int row) const {
        word pairs[8];
#pragma unroll
        for (int pair = 0; pair < 8; ++pair)  // columns 4·t + 2·b and the next of 16, to 8·b + 2·t
            pairs[pair % 2 * 4 + pair / 2] = to_bfloat16s(value_of(sums + pair * 4), value_of(sums + pair * 4 + 2));
#pragma unroll
        for (int chunk = 0; chunk < 2; ++chunk)
            *half_group(inner, items.routes, place, number, row / 2, chunk) =
                make_uint4(pairs[4 * chunk], pairs[4 * chunk + 1], pairs[4 * chunk + 2], pairs[4 * chunk + 3]);
    }
};

// A route's weighted output, bfloat16, or float32 if WIDE.
template <bool WIDE>
struct FinishDown {
    const half_word* bias;
    const float* weight;
    void* out;
    int row_count;

    __device__ __forceinline__ float bias_of(int expert, int row) const {
        return to_float(bias[static_cast<long long>(expert) * row_count + row]);
    }

    __device__ __forceinline__ void finish(const float* sums, const Items& items, int place, int, int row) const {
        int route = items.order[place];
        float by = weight[route];
        uint4* to = static_cast<uint4*>(out) + (static_cast<long long>(route) * row_count + row) / (WIDE ? 4 : 8);
#pragma unroll
        for (int part = 0; part < (WIDE ? 8 : 4); ++part) {
            const float* from = sums + part * (WIDE ? 4 : 8);
            if (WIDE)
                to[part] = make_uint4(__float_as_uint(from[0] * by), __float_as_uint(from[1] * by),
                                      __float_as_uint(from[2] * by), __float_as_uint(from[3] * by));
            else
                to[part] = make_uint4(to_bfloat16s(from[0] * by, from[1] * by), to_bfloat16s(from[2] * by, from[3] * by),
                                      to_bfloat16s(from[4] * by, from[5] * by), to_bfloat16s(from[6] * by, from[7] * by));
        }
    }
};

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
template <int GROUPS, int STAGES>
__global__ void __launch_bounds__(MULTIPLYING + COPYING, 1)
    gate_up_grouped(const uint4* gathered, const int* order, const int* tile_expert, const int* tile_first,
                    const int* tile_count, const uint4* codes, const uint4* scales, const half_word* bias, void* inner,
                    int routes, int slots, int row_count, float alpha, float limit) {
    Items items = {order, tile_expert, tile_first, tile_count, slots, row_count, routes};
    FinishGateUp finish = {bias, inner, row_count, -1.4426950408889634f * alpha, limit};
    group<GROUPS, STAGES>(items, gathered, codes, scales, finish);
}

// out[route] = weight · (rows · inner[route] + bias); codes as above, weight [P], out [P, row_count].
template <int GROUPS, int STAGES, bool WIDE>
__global__ void __launch_bounds__(MULTIPLYING + COPYING, 1)
    down_grouped(const uint4* inner, const int* order, const int* tile_expert, const int* tile_first,
                 const int* tile_count, const uint4* codes, const uint4* scales, const half_word* bias,
                 const float* weight, void* out, int routes, int slots, int row_count) {
    Items items = {order, tile_expert, tile_first, tile_count, slots, row_count, routes};
    FinishDown<WIDE> finish = {bias, weight, out, row_count};
    group<GROUPS, STAGES>(items, inner, codes, scales, finish);
}
