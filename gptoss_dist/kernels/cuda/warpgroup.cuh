// Hopper's warpgroup products, the barriers in shared memory that feed them, and registers moved between warps.
// PTX ISA 8.5, "Asynchronous Warpgroup Level Matrix Instructions"; compute capability 9.0a only.
//
// The left operand lies in registers. The instruction reads them after it was issued, and ptxas before CUDA 13.3 gives
// such registers to others meanwhile: `keep` names them again once the products are done, so that they stay.

typedef unsigned long long barrier;

__device__ __forceinline__ word shared_address(const void* at) { return static_cast<word>(__cvta_generic_to_shared(at)); }

__device__ __forceinline__ void barrier_make(barrier* at, int arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(at)), "r"(arrivals) : "memory");
}

__device__ __forceinline__ void barrier_arrive(barrier* at) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(at)) : "memory");
}

// Arrives once the copies that this thread has begun are there.
__device__ __forceinline__ void barrier_arrive_copied(barrier* at) {
    asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(shared_address(at)) : "memory");
}

// Waits for the end of the phase of this parity.
__device__ __forceinline__ void barrier_wait(barrier* at, int parity) {
    asm volatile(
        "{\n.reg .pred done;\nagain:\n"
        "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n@!done bra again;\n}" ::"r"(shared_address(at)),
        "r"(parity)
        : "memory");
}

// Arrives, and the phase also waits for so many bytes of bulk copies.
__device__ __forceinline__ void barrier_expect(barrier* at, int bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(at)), "r"(bytes)
                 : "memory");
}

// `bytes`, a multiple of 16, from global to shared memory by one thread; the barrier expects them.
__device__ __forceinline__ void copy_bulk(void* to, const void* from, int bytes, barrier* at) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                     shared_address(to)),
                 "l"(from), "r"(bytes), "r"(shared_address(at))
                 : "memory");
}

// Barriers made before are seen by bulk copies from here on.
__device__ __forceinline__ void publish_barriers() {
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

template <int REGISTERS>
__device__ __forceinline__ void give_registers() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(REGISTERS));
}

template <int REGISTERS>
__device__ __forceinline__ void take_registers() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(REGISTERS));
}

// Registers written before are seen by the products after.
__device__ __forceinline__ void begin_products() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void commit_products() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

// Waits until at most LEFT of the groups committed are under way.
template <int LEFT>
__device__ __forceinline__ void wait_for_products() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(LEFT) : "memory");
}

// `never` is 0, which the compiler does not know.
__device__ __forceinline__ void keep(const word (&a)[4][4], int never, word address) {
    asm volatile(
        "{\n.reg .pred held;\nsetp.ne.s32 held, %0, 0;\n"
        "@held st.shared.v4.u32 [%1], {%2, %3, %4, %5};\n@held st.shared.v4.u32 [%1], {%6, %7, %8, %9};\n"
        "@held st.shared.v4.u32 [%1], {%10, %11, %12, %13};\n@held st.shared.v4.u32 [%1], {%14, %15, %16, %17};\n}" ::
            "r"(never),
        "r"(address), "r"(a[0][0]), "r"(a[0][1]), "r"(a[0][2]), "r"(a[0][3]), "r"(a[1][0]), "r"(a[1][1]),
        "r"(a[1][2]), "r"(a[1][3]), "r"(a[2][0]), "r"(a[2][1]), "r"(a[2][2]), "r"(a[2][3]), "r"(a[3][0]),
        "r"(a[3][1]), "r"(a[3][2]), "r"(a[3][3])
        : "memory");
}

// Rows of 128 bytes in shared memory, in atoms of 8 rows whose 16-byte chunks are swizzled by the row: chunk c of row n
// stands at c ^ n % 8. The low word of their descriptor; sixteen bytes further is one more. SWIZZLED_ROWS is the high one.
__device__ __forceinline__ word swizzled_rows(const void* first) {
    return 1 << 16 | (shared_address(first) & 0x3FFFF) >> 4;
}

#define SWIZZLED_ROWS "0x40000040"  // a swizzle of 128 bytes, 1024 bytes from atom to atom

#define F4(d, i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define F16(d, i) F4(d, i), F4(d, i + 4), F4(d, i + 8), F4(d, i + 12)
#define N0 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"
#define N16 "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define N32 "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47"
#define N48 "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define PRODUCT(WIDTH, NAMES, A, B, ...)                                                                               \
    __device__ __forceinline__ void multiply_add(float (&d)[WIDTH / 2], const word (&a)[4], word b) {                \
        asm volatile("{\n.reg .pred add;\n.reg .b64 rows;\nsetp.eq.u32 add, 0, 0;\nmov.b64 rows, {" B ", " SWIZZLED_ROWS     \
                     "};\nwgmma.mma_async.sync.aligned.m64n" #WIDTH "k16.f32.bf16.bf16 {" NAMES "}, " A                 \
                     ", rows, add, 1, 1, 0;\n}"                                                                        \
                     : __VA_ARGS__                                                                                     \
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b));                                            \
    }

// sums[64 rows × WIDTH columns] += a[64 × 16] · b[WIDTH × 16] of a warpgroup; fragments as the PTX ISA deals them.
PRODUCT(32, N0, "{%16, %17, %18, %19}", "%20", F16(d, 0))
PRODUCT(64, N0 ", " N16, "{%32, %33, %34, %35}", "%36", F16(d, 0), F16(d, 16))
PRODUCT(96, N0 ", " N16 ", " N32, "{%48, %49, %50, %51}", "%52", F16(d, 0), F16(d, 16), F16(d, 32))
PRODUCT(128, N0 ", " N16 ", " N32 ", " N48, "{%64, %65, %66, %67}", "%68", F16(d, 0), F16(d, 16), F16(d, 32), F16(d, 48))

#undef PRODUCT
#undef SWIZZLED_ROWS
#undef N0
#undef N16
#undef N32
#undef N48
#undef F4
#undef F16
