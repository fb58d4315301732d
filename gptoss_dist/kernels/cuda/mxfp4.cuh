// MXFP4 words in the order of gptoss_dist/kernels/mxfp4_layout.py, whose names are used here, to bfloat16 pairs: bits are
// moved to where a tensor core wants them, and the scale brings the exponent back.

constexpr word CODES = 0x81C081C0;  // sign, exponent and mantissa of an E2M1 code in each of two bfloat16

// Factors that shift by 2, 4 and 6 bits. Where the compiler does not know them it has to multiply, which leaves the
// units that shift and mask, and would be the slowest, to the rest.
struct Shifts {
    word two = 1 << 2, four = 1 << 4, six = 1 << 6;
};

// Two words of rows r and r + 8 to four pairs of weights each, times their scales (2^126 · scale, twice in a word).
__device__ __forceinline__ void unpack(word own, word other, word own_scale, word other_scale, word (&a)[2][4],
                                       const Shifts& left = {}) {
    word shared = (own & 0x06030603) | ((other * left.two) & 0x180C180C);
    word pairs[4][2] = {
        {own & CODES, other & CODES},
        {(own * left.four) & CODES, (other * left.four) & CODES},
        {rotate_right(own, 6) & CODES, rotate_right(other, 6) & CODES},
        {(shared * left.six) & CODES, rotate_right(shared, 4) & CODES},
    };
#pragma unroll
    for (int pair = 0; pair < 4; ++pair) {
        a[pair / 2][pair % 2 * 2] = times_two(pairs[pair][0], own_scale);
        a[pair / 2][pair % 2 * 2 + 1] = times_two(pairs[pair][1], other_scale);
    }
}

__device__ __forceinline__ word scale_of(word byte) { return byte * 0x00800080 + 0x3F003F00; }

// The same of byte NUMBER of four scales.
template <int NUMBER>
__device__ __forceinline__ word scale_at(word scales) {
    return byte_twice<NUMBER>(scales) * 0x80 + 0x3F003F00;
}
