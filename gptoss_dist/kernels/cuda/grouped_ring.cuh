// What the grouped product multiplies, and how it comes to shared memory: experts_grouped.cu says in which order.

constexpr int ROWS = 256, WARPGROUP = 128, COPYING = 128, MULTIPLYING = 256;
constexpr int SUM_STRIDE = 36;  // floats of a column of 32 sums: what a warp writes and reads spreads over all banks
constexpr int STEP = 4;         // groups of a step of the ring
constexpr int CODE_BYTES = ROWS * STEP * 16, SCALE_BYTES = ROWS * STEP;
constexpr int SUM_BYTES = MULTIPLYING / 32 * 32 * SUM_STRIDE * 4;

// The ring, with room for COLUMNS routes in each of STAGES steps, and how far a thread is in it.
template <int STAGES, int COLUMNS>
struct Ring {
    static constexpr int PLANE_BYTES = COLUMNS * 128, ACTIVE_BYTES = PLANE_BYTES * STEP / 2;
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
template <int GROUPS, int STAGES, int COLUMNS>
__device__ __forceinline__ void copy_item(Ring<STAGES, COLUMNS>& ring, const Items& items, const Item& item,
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
            if (second) copy_bulk(ring.active() + ring.PLANE_BYTES, active_from + plane, bytes, ring.full());
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
