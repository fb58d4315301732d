// The warpgroups that multiply: codes from the ring to registers, unpacked there, and products (experts_grouped.cu).

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

template <int STAGES, int COLUMNS>
__device__ __forceinline__ PackedPlace packed_place(const Ring<STAGES, COLUMNS>& ring) {
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 8, after = STAGES * ring.ACTIVE_BYTES;
    int codes = after + (warp * 32 + lane / 4) * 64 + lane % 4 * 4;
    PackedPlace place = {ring.memory, {}, after + STAGES * CODE_BYTES + warp * 128 + lane / 4 * 4};
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
struct Products {
    word a[2][4][4];
    PackedPlace place;
    Unknown unknown;
    word rows, kept_at;
    barrier *full, *empty;
    bool arrives;
};

// One step of the ring with GROUPS_HERE groups, after which the step before it, at `before`, is done with.
template <int GROUPS_HERE, int STAGES, int COLUMNS, int HALF_WIDTH>
__device__ __forceinline__ void multiply_step(float (&sums)[2][HALF_WIDTH], Products& products,
                                              const Ring<STAGES, COLUMNS>& ring, bool first, int before) {
    barrier_wait(products.full + ring.stage, ring.parity);
    Packed packed;
#pragma unroll
    for (int group = 0; group < GROUPS_HERE; ++group) products.place.read(packed, group, ring.stage);
    word rows = products.rows + ring.stage * (ring.ACTIVE_BYTES / 16);
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
                             rows + group / 2 * (ring.PLANE_BYTES / 16) + group % 2 * 4 + half * 2);
        commit_products();
        wait_for_products<1>();
        keep(products.a[1 - group % 2], products.unknown.never, products.kept_at);
        if (group == 0 && !first && products.arrives) barrier_arrive(products.empty + before);
    }
}

// The sums of a warpgroup's 128 rows, of which there is one at least, and WIDTH columns.
template <int GROUPS, int STAGES, int COLUMNS, int HALF_WIDTH>
__device__ __forceinline__ void multiply_steps(float (&sums)[2][HALF_WIDTH], Ring<STAGES, COLUMNS>& ring,
                                               const Unknown& unknown) {
    Products products = {{},
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
