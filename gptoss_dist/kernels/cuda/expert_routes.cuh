// Which routes a warp multiplies: found by its own lanes for few, from a list of gptoss_dist/kernels/experts_routes.py for
// more.

// The routes of one expert.
struct Tile {
    int expert;
    int count;
    word lanes;  // without a list: the routes, a bit each
    int first;   // with one: where they begin in it
};

// Which tiles there are. Without a list lane r of a warp stands for route r, of 32 at most.
template <bool LISTED>
struct Routes {
    const int *index, *order, *tile_expert, *tile_first, *tile_count;
    int routes, experts, slots;
    int tiles;
    int key;
    word firsts;

    __device__ __forceinline__ void find() {
        int lane = threadIdx.x % 32;
        if (LISTED) {
            tiles = 0;  // those in use come first
#pragma unroll 1
            for (int slot = 0; slot < slots; slot += 32)
                tiles += __popc(__ballot_sync(~0u, slot + lane < slots && tile_expert[slot + lane] >= 0));
            return;
        }
        key = lane < routes ? index[lane] : -1;
        word same_before = __match_any_sync(~0u, key) & ((1u << lane) - 1);
        firsts = __ballot_sync(~0u, key >= 0 && key < experts && same_before == 0);
        tiles = __popc(firsts);
    }

    __device__ __forceinline__ Tile tile(int number) const {
        if (LISTED) return {tile_expert[number], tile_count[number], 0, tile_first[number]};
        word left = firsts;
#pragma unroll 1
        for (int skipped = 0; skipped < number; ++skipped) left &= left - 1;
        int expert = __shfl_sync(~0u, key, __ffs(left) - 1);
        word lanes = __ballot_sync(~0u, key == expert);
        return {expert, __popc(lanes), lanes, 0};
    }

    // The tile's route `number`, which may differ between lanes.
    __device__ __forceinline__ int route(const Tile& tile, int number) const {
        number = min(number, tile.count - 1);
        if (LISTED) return order[tile.first + number];
        word left = tile.lanes;
#pragma unroll 1
        for (int skipped = 0; skipped < number; ++skipped) left &= left - 1;
        return __ffs(left) - 1;
    }
};
