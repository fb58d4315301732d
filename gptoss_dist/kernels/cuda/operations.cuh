// What the kernels ask of the processor beyond C++: loads, barriers, bfloat16 products, tensor cores, dependent launches.
// PTX ISA 8.5 (docs.nvidia.com/cuda/parallel-thread-execution); compute capability 8.0 or later.

typedef unsigned int word;
typedef unsigned short half_word;

#define SHARED_MEMORY extern __shared__ __align__(1024) unsigned char shared_memory[]

// 16 bytes that are read once: they do not displace what others want of the first cache.
__device__ __forceinline__ uint4 load_once(const uint4* from) {
    uint4 found;
    asm volatile("ld.global.nc.L1::no_allocate.L2::128B.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(found.x), "=r"(found.y), "=r"(found.z), "=r"(found.w)
                 : "l"(from));
    return found;
}

__device__ __forceinline__ word load_once(const word* from) {
    word found;
    asm volatile("ld.global.nc.L1::no_allocate.u32 %0, [%1];" : "=r"(found) : "l"(from));
    return found;
}

// 16 bytes from global to shared memory, there after `copies_done` and a barrier.
__device__ __forceinline__ void copy_async(uint4* to, const uint4* from) {
    word address = static_cast<word>(__cvta_generic_to_shared(to));
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16;" ::"r"(address), "l"(from) : "memory");
}

__device__ __forceinline__ void copies_done() { asm volatile("cp.async.wait_all;" ::: "memory"); }

// A barrier of some warps of the block, numbered from 1.
__device__ __forceinline__ void team_barrier(int number, int threads) {
    asm volatile("bar.sync %0, %1;" ::"r"(number), "r"(threads) : "memory");
}

// Two bfloat16 products at once; subnormal numbers count.
__device__ __forceinline__ word times_two(word a, word b) {
    word found;
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(found) : "r"(a), "r"(b), "r"(0x80008000u));
    return found;
}

// sums[16 rows × 8 columns] += a[16 × 16] · b[16 × 8] in bfloat16, float32 sums; fragments as the PTX ISA deals them.
__device__ __forceinline__ void multiply_add(float (&sums)[4], const word (&a)[4], word b0, word b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// A value to be kept, not computed anew wherever it is used.
__device__ __forceinline__ void hold(int& value) { asm volatile("" : "+r"(value)); }

__device__ __forceinline__ word rotate_right(word value, int bits) { return __funnelshift_r(value, value, bits); }

// Byte NUMBER in the low byte of both halves.
template <int NUMBER>
__device__ __forceinline__ word byte_twice(word value) {
    return __byte_perm(value, 0, 0x4040 + 0x0101 * NUMBER);
}

__device__ __forceinline__ float exponential(float value) { return __expf(value); }

// 2^value and 1 / value to two units in the last place; subnormal numbers are zeros.
__device__ __forceinline__ float power_of_two(float value) {
    float found;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(found) : "f"(value));
    return found;
}

__device__ __forceinline__ float reciprocal(float value) {
    float found;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(found) : "f"(value));
    return found;
}

// Of two numbers, and NaN if one is none: what has gone wrong stays to be seen (fminf would give the other).
__device__ __forceinline__ float least(float a, float b) {
    float found;
    asm("min.NaN.f32 %0, %1, %2;" : "=f"(found) : "f"(a), "f"(b));
    return found;
}

__device__ __forceinline__ float greatest(float a, float b) {
    float found;
    asm("max.NaN.f32 %0, %1, %2;" : "=f"(found) : "f"(a), "f"(b));
    return found;
}

__device__ __forceinline__ float to_float(half_word bits) { return __uint_as_float(static_cast<word>(bits) << 16); }

// Rounded to the nearest bfloat16, ties to even.
__device__ __forceinline__ half_word to_bfloat16(float value) {
    half_word found;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(found) : "f"(value));
    return found;
}

// Both rounded so, the first in the low half.
__device__ __forceinline__ word to_bfloat16s(float low, float high) {
    word found;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(found) : "f"(high), "f"(low));
    return found;
}

__device__ __forceinline__ float low_half(word pair) { return __uint_as_float(pair << 16); }
__device__ __forceinline__ float high_half(word pair) { return __uint_as_float(pair & 0xFFFF0000u); }

// Two words, each with a number behind it, to memory that another GPU may read: each pair is written at once.
__device__ __forceinline__ void store_numbered(uint4* to, uint2 values, word number) {
    asm volatile("st.volatile.global.v4.u32 [%0], {%1, %2, %3, %2};" ::"l"(to), "r"(values.x), "r"(number),
                 "r"(values.y)
                 : "memory");
}

// Waits until both words carry the number.
__device__ __forceinline__ uint2 load_numbered(const uint4* from, word number) {
    uint4 found;
    do {
        asm volatile("ld.volatile.global.v4.u32 {%0, %1, %2, %3}, [%4];"
                     : "=r"(found.x), "=r"(found.y), "=r"(found.z), "=r"(found.w)
                     : "l"(from)
                     : "memory");
    } while (found.y != number || found.w != number);
    return make_uint2(found.x, found.z);
}

// Counters that blocks wait for each other with: what a thread wrote before it added is seen by who has loaded the sum.
__device__ __forceinline__ void add_released(int* to, int value) {
    asm volatile("fence.acq_rel.gpu; red.relaxed.gpu.global.add.s32 [%0], %1;" ::"l"(to), "r"(value) : "memory");
}

__device__ __forceinline__ int load_acquired(const int* from) {
    int found;
    asm volatile("ld.acquire.gpu.global.s32 %0, [%1];" : "=r"(found) : "l"(from) : "memory");
    return found;
}

// One more; what was there before.
__device__ __forceinline__ int add_one(int* to) {
    int found;
    asm volatile("atom.relaxed.gpu.global.add.s32 %0, [%1], 1;" : "=r"(found) : "l"(to) : "memory");
    return found;
}

// The next launch of the stream may begin (if it was allowed to); it still waits for this one with `wait_for_previous`.
__device__ __forceinline__ void let_next_begin() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

__device__ __forceinline__ void wait_for_previous() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
