// MXFP4 words in the order of gptoss_dist/kernels/mxfp4_layout.py, whose names are used here, to bfloat16 pairs: bits are
// moved to where a tensor core wants them, and the scale brings the exponent back.

constexpr word CODES = 0x81C081C0;  // sign, exponent and mantissa of an E2M1 code in each of two bfloat16

// Two words of rows r and r + 8 to four pairs of weights each, times their scales (2^126 · scale, twice in a word).
__device__ __forceinline__ void unpack(word own, word other, word own_scale, word other_scale, word (&a)[2][4]) {
    word shared = (own & 0x06030603) | ((other << 2) & 0x180C180C);
    word pairs[4][2] = {
        {own & CODES, other & CODES},
        {(own << 4) & CODES, (other << 4) & CODES},
        {rotate_right(own, 6) & CODES, rotate_right(other, 6) & CODES},
        {(shared << 6) & CODES, rotate_right(shared, 4) & CODES},
    };
#pragma unroll
    for (int pair = 0; pair < 4; ++pair) {
        a[pair / 2][pair % 2 * 2] = times_two(pairs[pair][0], own_scale);
        a[pair / 2][pair % 2 * 2 + 1] = times_two(pairs[pair][1], other_scale);
    }
}

__device__ __forceinline__ word scale_of(word byte) { return byte * 0x00800080 + 0x3F003F00; }
