// Packed experts for few routes an expert: weights stream from memory through registers into tensor cores.
//
// A grid that fills the chip once. An item is ROWS weight rows of one expert; every block takes a range of items that lie
// together, and its teams of TEAM_WARPS warps take them in turn. For each expert the block brings the activations of its
// routes to shared memory, 16 bytes a chunk, chunks swizzled so that the reads of a warp spread over all banks. The warps
// of a team share the contracted columns in quads of four groups of 32; the loads of AHEAD quads are always in flight in
// registers, those of the next item before the last one's sums are written. In a quad thread (g = lane / 4,
// t = lane % 4) has group t of the rows g and g + 8 of each tile of 16 rows, 16 bytes each, and the 32 activations of
// its group and of column g. A tensor core does not mind which contracted column stands where, as long as both operands
// agree: the four values that word i of a thread's group feeds to one product meet the activations 4·i … 4·i + 3 (and
// 16 more) of its own group. How bits stand in the words: gptoss_dist/kernels/mxfp4_layout.py. Sums are added over the
// team's warps in shared memory, in their order: the same bits on every run.
//
// Routes of other ranks (expert ids outside [0, experts)) are left as they are.

// How the work on one projection is cut: GROUPS contracted groups of 32 columns.
template <int GROUPS_, int ROW_TILES_, int COLUMN_TILES_, int WARPS_, int TEAM_WARPS_, int AHEAD_>
struct Cut {
    static constexpr int GROUPS = GROUPS_, ROW_TILES = ROW_TILES_, WARPS = WARPS_, TEAM_WARPS = TEAM_WARPS_;
    static constexpr int COLUMN_TILES = COLUMN_TILES_, COLUMNS = 8 * COLUMN_TILES, AHEAD = AHEAD_;
    static constexpr int CHAINS = COLUMN_TILES == 1 ? 2 : 1;  // sums of their own, so that products need not wait
    static constexpr int ROWS = 16 * ROW_TILES, TEAM = 32 * TEAM_WARPS, TEAMS = WARPS / TEAM_WARPS;
    static constexpr int QUADS = (GROUPS + 3) / 4;
    static constexpr int STEPS = (QUADS + TEAM_WARPS * AHEAD - 1) / (TEAM_WARPS * AHEAD) * AHEAD;
    static constexpr int SUM_STRIDE = ROWS + 4;  // floats of a column of sums: the stores of a warp hit 32 banks
    static constexpr int COLUMN_CHUNKS = (GROUPS + 1) / 2 * 8;  // of a column of staged activations
    static constexpr int TEAM_SUMS = TEAM_WARPS * COLUMNS * SUM_STRIDE;

    __device__ __forceinline__ static int quad(int step) { return step * TEAM_WARPS + threadIdx.x / 32 % TEAM_WARPS; }
    __device__ __forceinline__ static int group(int step) { return quad(step) * 4 + threadIdx.x % 4; }
};

// Where a thread's part of an item begins, at group 0.
struct Place {
    const uint4* codes;
    const word* scales;  // words of four rows of 32
};

template <class C>
__device__ __forceinline__ Place place_of(const uint4* codes, const word* scales, long long first_row) {
    int row = threadIdx.x % 32 / 4;
    return {codes + (first_row + row) * C::GROUPS, scales + first_row / 32 * (C::GROUPS * 8) + row};
}

// What a thread holds of one quad: its rows' codes of its group, and their scales.
template <class C>
struct Quad {
    uint4 codes[2 * C::ROW_TILES];
    word scales;
};

// Beyond the last group: what the last one holds, which then meets zeros.
template <class C>
__device__ __forceinline__ void load(Quad<C>& quad, const Place& place, int step) {
    int group = min(C::group(step), C::GROUPS - 1);
    const uint4* codes = place.codes + group;
#pragma unroll
    for (int part = 0; part < 2 * C::ROW_TILES; ++part) quad.codes[part] = load_once(codes + 8 * part * C::GROUPS);
    quad.scales = load_once(place.scales + group * 8);
}

// Where chunk `part` (16 bytes) of a group and column lies in the staged activations, in chunks.
template <class C>
__device__ __forceinline__ int chunk_of(int column, int group, int part) {
    return column * C::COLUMN_CHUNKS + group * 4 + (part ^ (group / 2 % 2) ^ (column % 2 * 2));
}

// Begin to copy the tile's activations to shared memory: row `route / top_k` of `activations`, the route of column `lane`.
template <class C>
__device__ __forceinline__ void stage(uint4* staged, const uint4* activations, int route, int columns, int top_k) {
#pragma unroll 1
    for (int column = 0; column < columns; ++column) {
        const uint4* from = activations + static_cast<long long>(__shfl_sync(~0u, route, column) / top_k) * (C::GROUPS * 4);
#pragma unroll 1
        for (int chunk = threadIdx.x; chunk < C::GROUPS * 4; chunk += C::WARPS * 32)
            copy_async(staged + chunk_of<C>(column, chunk / 4, chunk % 4), from + chunk);
    }
}

// Where a thread reads its activations: chunks of group 0 of the warp's first quad, in the order of their values. Those of
// further column tiles lie eight columns on; what a column holds that has no route, nobody looks at.
struct Active {
    const uint4* parts[4];
};

template <class C>
__device__ __forceinline__ Active active_of(const uint4* staged, int columns) {
    Active active;
    int column = min(static_cast<int>(threadIdx.x % 32 / 4), columns - 1);
#pragma unroll
    for (int part = 0; part < 4; ++part) active.parts[part] = staged + chunk_of<C>(column, C::group(0), part);
    return active;
}

// Sums of rows g, g + 8 of each row tile and columns 2·t, 2·t + 1 of each column tile.
template <class C>
struct Sums {
    float parts[C::ROW_TILES][C::COLUMN_TILES][C::CHAINS][4];
};

// The warp's part of an item.
template <class C, bool CHECKED>
__device__ __forceinline__ void multiply(Sums<C>& sums, const Quad<C>& quad, const Active& parts, int step,
                                         int upper_half) {
    if (CHECKED && C::quad(step) >= C::QUADS) return;
    word active[C::COLUMN_TILES][16];
#pragma unroll
    for (int columns = 0; columns < C::COLUMN_TILES; ++columns)
#pragma unroll
        for (int part = 0; part < 4; ++part) {
            uint4 found = make_uint4(0, 0, 0, 0);
            if (!CHECKED || C::group(step) < C::GROUPS)
                found = parts.parts[part][columns * 8 * C::COLUMN_CHUNKS + step * C::TEAM_WARPS * 16];
            active[columns][part * 4] = found.x, active[columns][part * 4 + 1] = found.y;
            active[columns][part * 4 + 2] = found.z, active[columns][part * 4 + 3] = found.w;
        }
    word scales = C::ROW_TILES == 1 ? quad.scales >> (16 * upper_half) : quad.scales;
#pragma unroll
    for (int tile = 0; tile < C::ROW_TILES; ++tile) {
        const uint4 own = quad.codes[2 * tile], other = quad.codes[2 * tile + 1];
        const word own_words[4] = {own.x, own.y, own.z, own.w};
        const word other_words[4] = {other.x, other.y, other.z, other.w};
        word own_scale = scale_of(scales >> (16 * tile) & 255), other_scale = scale_of(scales >> (16 * tile + 8) & 255);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            word a[2][4];
            unpack(own_words[i], other_words[i], own_scale, other_scale, a);
#pragma unroll
            for (int half = 0; half < 2; ++half)
#pragma unroll
                for (int columns = 0; columns < C::COLUMN_TILES; ++columns)
                    multiply_add(sums.parts[tile][columns][half % C::CHAINS], a[half], active[columns][8 * half + 2 * i],
                                 active[columns][8 * half + 2 * i + 1]);
        }
    }
}

template <class C>
__device__ __forceinline__ void store_sums(float* buffer, const Sums<C>& sums) {
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32 % C::TEAM_WARPS;
#pragma unroll
    for (int tile = 0; tile < C::ROW_TILES; ++tile)
#pragma unroll
        for (int columns = 0; columns < C::COLUMN_TILES; ++columns)
#pragma unroll
            for (int part = 0; part < 4; ++part) {
                int column = warp * C::COLUMNS + columns * 8 + lane % 4 * 2 + part % 2;
                float sum = sums.parts[tile][columns][0][part];
                if (C::CHAINS == 2) sum += sums.parts[tile][columns][C::CHAINS - 1][part];
                buffer[column * C::SUM_STRIDE + tile * 16 + part / 2 * 8 + lane / 4] = sum;
            }
    if (C::TEAM_WARPS == 1)
        __syncwarp();
    else
        team_barrier(1 + threadIdx.x / C::TEAM, C::TEAM);
}

// The first quads of an item.
template <class C>
__device__ __forceinline__ void load_first(Quad<C> (&quads)[C::AHEAD], const Place& place) {
#pragma unroll
    for (int step = 0; step < C::AHEAD; ++step) load(quads[step], place, step);
}

// One item, whose first quads are held; those of the next are, afterwards.
template <class C>
__device__ __forceinline__ void multiply_item(Sums<C>& sums, Quad<C> (&quads)[C::AHEAD],
                                              const Active& active, const Place& here, const Place& next,
                                              int upper_half) {
#pragma unroll 1
    for (int step = 0; step < C::STEPS - C::AHEAD; step += C::AHEAD)
#pragma unroll
        for (int ahead = 0; ahead < C::AHEAD; ++ahead) {
            multiply<C, false>(sums, quads[ahead], active, step + ahead, upper_half);
            load(quads[ahead], here, step + C::AHEAD + ahead);
        }
#pragma unroll
    for (int ahead = 0; ahead < C::AHEAD; ++ahead) {
        multiply<C, true>(sums, quads[ahead], active, C::STEPS - C::AHEAD + ahead, upper_half);
        load(quads[ahead], next, ahead);
    }
}

// Which part of the work is this block's: those of one multiprocessor, which are `apart` numbers apart, get parts side by
// side, so that what does not divide evenly is dealt out over the multiprocessors and not over their blocks.
template <int BLOCKS>
__device__ __forceinline__ int part_of_block() {
    int apart = gridDim.x / BLOCKS;
    return static_cast<int>(blockIdx.x) % apart * BLOCKS + static_cast<int>(blockIdx.x) / apart;
}

// Every item of this block's part of one projection; `finish` is one of experts_finish.cuh.
template <class C, bool LISTED, class Finish>
__device__ __forceinline__ void stream(const Routes<LISTED>& routes, int part, const uint4* activations,
                                       const uint4* codes, const word* scales, int row_count, int top_k,
                                       Finish& finish) {
    SHARED_MEMORY;
    int team = threadIdx.x / C::TEAM, row_tiles = row_count / C::ROWS;
    float* buffers = reinterpret_cast<float*>(shared_memory) + team * (2 * C::TEAM_SUMS);
    uint4* staged = reinterpret_cast<uint4*>(shared_memory + 8 * C::TEAMS * C::TEAM_SUMS);
    word items = routes.tiles * row_tiles;  // times blocks: below 2^32 (experts_shapes)
    int start = items * part / gridDim.x, end = items * (part + 1) / gridDim.x, number = start / row_tiles;
    if (start >= end) return;
    Tile tile = routes.tile(number);
    auto place = [&](int expert, int row_tile) {
        return place_of<C>(codes, scales, static_cast<long long>(expert) * row_count + row_tile * C::ROWS);
    };
    int held = start + team, route;
    Place here = place(tile.expert, min(held - number * row_tiles, row_tiles - 1));
    Quad<C> quads[C::AHEAD];
    auto begin = [&](bool last) {
        route = routes.route(tile, threadIdx.x % C::COLUMNS);
        finish.chosen(route);
        finish.wait_for(number, last);
        __syncthreads();
        stage<C>(staged, activations, route, tile.count, top_k);
    };
    // What can be had comes first: activations that are there are not to queue behind weights.
    if (Finish::WAITS) load_first(quads, here);
    begin(end <= (number + 1) * row_tiles);
    if (!Finish::WAITS) load_first(quads, here);
    for (int turn = 0; start < end;) {
        int stop = min(end, (number + 1) * row_tiles), columns = tile.count;
        copies_done();
        __syncthreads();
        Active active = active_of<C>(staged, columns);
        int expert = tile.expert;
        if (stop < end) tile = routes.tile(number + 1);
        for (int item = start + team; item < stop; item += C::TEAMS, turn ^= 1) {
            int row_tile = item - number * row_tiles, next = item + C::TEAMS;
            if (held != item) load_first(quads, here = place(expert, row_tile));
            finish.prepare(static_cast<long long>(expert) * row_count + row_tile * C::ROWS);
            Place following = place(expert, row_tile + C::TEAMS);
            if (next >= stop) next = stop + team, following = place(tile.expert, team);
            if (next >= end) following = here;
            Sums<C> sums = {};
            multiply_item<C>(sums, quads, active, here, following, row_tile * C::ROW_TILES % 2);
            here = following, held = next;
            float* buffer = buffers + turn * C::TEAM_SUMS;
            store_sums<C>(buffer, sums);
            finish.finish(buffer, route, row_tile * C::ROWS, columns, turn);
        }
        finish.done(number, stop - start);
        start = stop, ++number;
        if (start < end) begin(end <= (number + 1) * row_tiles);
    }
}

// inner[route] = clamped SwiGLU of the gate (even) and up (odd) rows of its expert, bfloat16, for all routes; then
// out[route] = weight · (rows · inner[route] + bias), float32, for the routes of an expert as soon as their inner rows
// are there. All blocks are on the chip at once: some wait for others.
// hidden [T, 32 · HIDDEN_GROUPS], inner [P, 32 · GROUPS], weight [P], out [P, 32 · HIDDEN_GROUPS];
// up codes [E, 64 · GROUPS, HIDDEN_GROUPS, 16 bytes], down codes [E, 32 · HIDDEN_GROUPS, GROUPS, 16 bytes]; `ready`: zeros,
// one more than there may be tiles, and zeros again at the end.
template <int HIDDEN_GROUPS, int GROUPS, int ROW_TILES, int COLUMN_TILES, int WARPS, int TEAM_WARPS, int DOWN_TEAM_WARPS,
          int AHEAD, int DOWN_AHEAD, int BLOCKS, bool LISTED>
__global__ void __launch_bounds__(32 * WARPS, BLOCKS)
    experts_stream(const uint4* hidden, const int* index, const int* order, const int* tile_expert,
                   const int* tile_first, const int* tile_count, const uint4* up_codes, const word* up_scales,
                   const half_word* up_bias, uint4* inner, const uint4* down_codes, const word* down_scales,
                   const half_word* down_bias, const float* weight, float* out, int* ready, int routes, int experts,
                   int slots, int top_k, float alpha, float limit) {
    using Up = Cut<HIDDEN_GROUPS, ROW_TILES, COLUMN_TILES, WARPS, TEAM_WARPS, AHEAD>;
    using Down = Cut<GROUPS, ROW_TILES, COLUMN_TILES, WARPS, DOWN_TEAM_WARPS, DOWN_AHEAD>;
    Routes<LISTED> all = {index, order, tile_expert, tile_first, tile_count, routes, experts, slots, 0, 0, 0};
    all.find();
    int part = part_of_block<BLOCKS>();
    FinishGateUp<Up> up = {up_bias, reinterpret_cast<half_word*>(inner), ready + 1, 32 * GROUPS, alpha, limit, 0, 0};
    stream<Up>(all, part, hidden, up_codes, up_scales, 64 * GROUPS, top_k, up);
    let_next_begin();
    FinishDown<Down> down = {down_bias, weight, out, ready, 64 * GROUPS / Up::ROWS, 32 * HIDDEN_GROUPS, -1, 0, 0};
    stream<Down>(all, part, inner, down_codes, down_scales, 32 * HIDDEN_GROUPS, 1, down);
    down.leave(all.tiles);
}
