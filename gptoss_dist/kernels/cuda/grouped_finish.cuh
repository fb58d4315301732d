// What becomes of a warp's sums of the grouped product: SwiGLU of gate and up, or a route's weighted output.
//
// Both have
//   bias_of(expert, row);
//   finish(sums, items, place, number, row): the sums, bias included, of rows `row` … row + 31 for the route at `place` of
//     the list, which is column `number` of its tile.

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
        float gate = least(sums[0], limit), up = least(greatest(sums[1], -limit), limit);
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
