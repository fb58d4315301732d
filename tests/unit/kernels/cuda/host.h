// Runs CUDA kernels on a CPU: a thread of the system for each thread of a block.
// What operations.cuh asks of a GPU is done here in plain C++, tensor core products by the fragment tables of the PTX
// ISA. Shared memory holds NaN before each block, so what a kernel reads and did not write shows.
#pragma once

#include <atomic>
#include <barrier>
#include <bit>
#include <cmath>
#include <condition_variable>
#include <cstdint>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#define __device__
#define __global__
#define __forceinline__ inline
#define __launch_bounds__(threads, blocks)
#define SHARED_MEMORY unsigned char* shared_memory = host::block->shared.data()

typedef unsigned int word;
typedef unsigned short half_word;
typedef unsigned long long barrier;
struct alignas(16) uint4 { word x, y, z, w; };
struct alignas(16) float4 {
    float x, y, z, w;
};
struct uint2 { word x, y; };
struct dim3 { int x = 1, y = 1; };
inline uint2 make_uint2(word x, word y) { return {x, y}; }
inline uint4 make_uint4(word x, word y, word z, word w) { return {x, y, z, w}; }

namespace host {
struct Warp {
    std::barrier<> barrier{32};
    word exchanged[32];
    word a[32][4], b[32][2];
};
struct Warpgroup {
    std::barrier<> barrier{128};
    word a[128][4];
};
// `mbarrier`: a phase ends with so many arrivals and bytes.
struct Phases {
    std::mutex mutex;
    std::condition_variable changed;
    int arrivals, left, bytes = 0, parity = 0;

    void take(int fewer, int more_bytes) {
        std::lock_guard<std::mutex> held(mutex);
        left -= fewer, bytes += more_bytes;
        if (left || bytes) return;
        left = arrivals, parity ^= 1;
        changed.notify_all();
    }
};
struct Block {
    explicit Block(int threads, int shared_bytes) : all(threads), shared(shared_bytes, 0xFF) {
        for (int warp = 0; warp < threads / 32; ++warp) warps.push_back(std::make_unique<Warp>());
        for (int group = 0; group < threads / 128; ++group) warpgroups.push_back(std::make_unique<Warpgroup>());
    }
    std::barrier<> all;
    std::vector<unsigned char> shared;
    std::vector<std::unique_ptr<Warp>> warps;
    std::vector<std::unique_ptr<Warpgroup>> warpgroups;
    std::mutex mutex;
    std::map<barrier*, std::unique_ptr<Phases>> phases;
    std::map<std::pair<int, int>, std::unique_ptr<std::barrier<>>> teams;  // by number and threads

    std::barrier<>& team(int number, int threads) {
        std::lock_guard<std::mutex> held(mutex);
        auto& found = teams[{number, threads}];
        if (!found) found = std::make_unique<std::barrier<>>(threads);
        return *found;
    }
};
inline thread_local Block* block;
inline thread_local int thread;
inline Warp& warp() { return *block->warps[thread / 32]; }
inline int lane() { return thread % 32; }
}  // namespace host

inline thread_local dim3 threadIdx, blockIdx, blockDim, gridDim;

inline void __syncthreads() { host::block->all.arrive_and_wait(); }
inline void __syncwarp() { host::warp().barrier.arrive_and_wait(); }
inline void team_barrier(int number, int threads) { host::block->team(number, threads).arrive_and_wait(); }

template <class T>
T __shfl_sync(word, T value, int from) {
    static_assert(sizeof(T) == 4);
    host::Warp& warp = host::warp();
    warp.exchanged[host::lane()] = std::bit_cast<word>(value);
    warp.barrier.arrive_and_wait();
    T found = std::bit_cast<T>(warp.exchanged[from % 32]);
    warp.barrier.arrive_and_wait();
    return found;
}

template <class T>
T __shfl_xor_sync(word mask, T value, int apart) {
    return __shfl_sync(mask, value, host::lane() ^ apart);
}

inline word __ballot_sync(word mask, bool holds) {
    word found = 0;
    for (int lane = 0; lane < 32; ++lane) found |= __shfl_sync(mask, static_cast<word>(holds), lane) << lane;
    return found;
}

inline word __match_any_sync(word mask, int value) {
    word found = 0;
    for (int lane = 0; lane < 32; ++lane)
        found |= static_cast<word>(__shfl_sync(mask, value, lane) == value) << lane;
    return found;
}

inline float __uint_as_float(word bits) { return std::bit_cast<float>(bits); }
inline word __float_as_uint(float value) { return std::bit_cast<word>(value); }
inline int __popc(word value) { return std::popcount(value); }
inline int __ffs(word value) { return value ? std::countr_zero(value) + 1 : 0; }
inline int min(int a, int b) { return a < b ? a : b; }

inline uint4 load_once(const uint4* from) { return *from; }
inline word load_once(const word* from) { return *from; }
inline void copy_async(uint4* to, const uint4* from) { *to = *from; }
inline void copies_done() {}
inline void hold(int&) {}
inline word rotate_right(word value, int bits) { return std::rotr(value, bits); }
template <int NUMBER>
word byte_twice(word value) {
    return (value >> (8 * NUMBER) & 255) * 0x10001;
}
inline float power_of_two(float value) { return std::exp2(value); }
inline float reciprocal(float value) { return 1.0f / value; }
inline float least(float a, float b) { return a != a || b != b ? a + b : a < b ? a : b; }
inline float greatest(float a, float b) { return a != a || b != b ? a + b : a > b ? a : b; }
inline float exponential(float value) { return std::exp(value); }
inline float to_float(half_word bits) { return std::bit_cast<float>(static_cast<word>(bits) << 16); }
inline half_word to_bfloat16(float value) {
    word bits = std::bit_cast<word>(value);
    if (std::isnan(value)) return 0x7FFF;
    return static_cast<half_word>((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}
inline word to_bfloat16s(float low, float high) {
    return to_bfloat16(low) | static_cast<word>(to_bfloat16(high)) << 16;
}
inline word times_two(word a, word b) {
    half_word low = to_bfloat16(to_float(a & 0xFFFF) * to_float(b & 0xFFFF));
    half_word high = to_bfloat16(to_float(a >> 16) * to_float(b >> 16));
    return low | static_cast<word>(high) << 16;
}
inline float low_half(word pair) { return to_float(pair & 0xFFFF); }
inline float high_half(word pair) { return to_float(pair >> 16); }
inline float rsqrtf(float value) { return 1.0f / std::sqrt(value); }
inline void store_numbered(uint4* to, uint2 values, word number) {
    auto* halves = reinterpret_cast<std::uint64_t*>(to);
    std::uint64_t behind = static_cast<std::uint64_t>(number) << 32;
    std::atomic_ref(halves[0]).store(behind | values.x, std::memory_order_relaxed);
    std::atomic_ref(halves[1]).store(behind | values.y, std::memory_order_relaxed);
}
inline uint2 load_numbered(const uint4* from, word number) {
    auto* halves = reinterpret_cast<std::uint64_t*>(const_cast<uint4*>(from));
    std::uint64_t found[2];
    for (int half = 0; half < 2; ++half)
        while (found[half] = std::atomic_ref(halves[half]).load(std::memory_order_relaxed), found[half] >> 32 != number)
            std::this_thread::yield();
    return {static_cast<word>(found[0]), static_cast<word>(found[1])};
}
inline void let_next_begin() {}
inline void wait_for_previous() {}

inline float half_of(word pair, int half) { return to_float(pair >> (16 * half) & 0xFFFF); }

// PTX ISA, "Matrix Fragments for mma.m16n8k16 with floating point type": g = lane / 4, t = lane % 4.
inline void multiply_add(float (&sums)[4], const word (&a)[4], word b0, word b1) {
    host::Warp& warp = host::warp();
    std::memcpy(warp.a[host::lane()], a, sizeof a);
    warp.b[host::lane()][0] = b0, warp.b[host::lane()][1] = b1;
    warp.barrier.arrive_and_wait();
    for (int part = 0; part < 4; ++part) {
        int row = host::lane() / 4 + part / 2 * 8, column = host::lane() % 4 * 2 + part % 2;
        for (int k = 0; k < 16; ++k) {
            int owner = k % 8 / 2;
            float left = half_of(warp.a[row % 8 * 4 + owner][k / 8 * 2 + row / 8], k % 2);
            sums[part] += left * half_of(warp.b[column * 4 + owner][k / 8], k % 2);
        }
    }
    warp.barrier.arrive_and_wait();
}

// warpgroup.cuh. Copies and products are done at once here; that operands stay until then is read off the machine code
// (tests/wgmma_operands.py).
inline word shared_address(const void* at) {
    return static_cast<word>(static_cast<const unsigned char*>(at) - host::block->shared.data());
}
inline void barrier_make(barrier* at, int arrivals) {
    auto made = std::make_unique<host::Phases>();
    made->arrivals = made->left = arrivals;
    host::block->phases[at] = std::move(made);
}
inline void barrier_arrive(barrier* at) { host::block->phases.at(at)->take(1, 0); }
inline void barrier_expect(barrier* at, int bytes) { host::block->phases.at(at)->take(1, bytes); }
inline void barrier_arrive_copied(barrier* at) { barrier_arrive(at); }
inline void barrier_wait(barrier* at, int parity) {
    host::Phases& phases = *host::block->phases.at(at);
    std::unique_lock<std::mutex> held(phases.mutex);
    phases.changed.wait(held, [&] { return phases.parity != parity; });
}
inline void copy_bulk(void* to, const void* from, int bytes, barrier* at) {
    std::memcpy(to, from, bytes);
    host::block->phases.at(at)->take(0, -bytes);
}
inline void publish_barriers() {}
template <int REGISTERS> void give_registers() {}
template <int REGISTERS> void take_registers() {}
inline void begin_products() {}
inline void commit_products() {}
template <int LEFT> void wait_for_products() {}
inline void keep(const word (&)[4][4], int, word) {}
inline word swizzled_rows(const void* first) { return shared_address(first) / 16; }

// PTX ISA, "Register Fragments for wgmma.mma_async.m64nNk16" and the 128-byte swizzle of the right operand.
template <int HALF_WIDTH>
void multiply_add(float (&sums)[HALF_WIDTH], const word (&a)[4], word rows) {
    host::Warpgroup& group = *host::block->warpgroups[host::thread / 128];
    int thread = host::thread % 128;
    std::memcpy(group.a[thread], a, sizeof a);
    group.barrier.arrive_and_wait();
    for (int part = 0; part < HALF_WIDTH; ++part) {
        int row = host::lane() / 4 + part / 2 % 2 * 8, column = part / 4 * 8 + host::lane() % 4 * 2 + part % 2;
        for (int k = 0; k < 16; ++k) {
            word left = group.a[thread / 32 * 32 + row % 8 * 4 + k % 8 / 2][k / 8 * 2 + row / 8];
            word at = rows * 16 + column / 8 * 1024 + column % 8 * 128 + k * 2;
            half_word right;
            std::memcpy(&right, host::block->shared.data() + (at ^ (at >> 3 & 0x70)), sizeof right);
            sums[part] += half_of(left, k % 2) * to_float(right);
        }
    }
    group.barrier.arrive_and_wait();
}

inline void add_released(int* to, int value) { std::atomic_ref(*to).fetch_add(value, std::memory_order_release); }
// Another block may be waited for: its threads get a turn.
inline int load_acquired(const int* from) {
    std::this_thread::yield();
    return std::atomic_ref(*const_cast<int*>(from)).load(std::memory_order_acquire);
}
inline int add_one(int* to) { return std::atomic_ref(*to).fetch_add(1, std::memory_order_relaxed); }

namespace host {
inline void begin(std::vector<std::thread>& running, Block& made, dim3 number, dim3 grid, int threads,
                  const std::function<void()>& kernel) {
    for (int place = 0; place < threads; ++place)
        running.emplace_back([&made, &kernel, number, grid, threads, place] {
            block = &made, thread = place;
            threadIdx = {place, 0}, blockIdx = number, blockDim = {threads, 1}, gridDim = grid;
            kernel();
        });
}

// Every block of the grid at once, so that they may wait for each other.
inline void launch_together(dim3 grid, int threads, int shared_bytes, const std::function<void()>& kernel) {
    std::vector<std::unique_ptr<Block>> blocks;
    std::vector<std::thread> running;
    for (int y = 0; y < grid.y; ++y)
        for (int x = 0; x < grid.x; ++x) {
            blocks.push_back(std::make_unique<Block>(threads, shared_bytes));
            begin(running, *blocks.back(), {x, y}, grid, threads, kernel);
        }
    for (auto& one : running) one.join();
}

// Every block of the grid, `threads` threads each, one after the other.
inline void launch(dim3 grid, int threads, int shared_bytes, const std::function<void()>& kernel) {
    for (int y = 0; y < grid.y; ++y)
        for (int x = 0; x < grid.x; ++x) {
            Block made(threads, shared_bytes);
            std::vector<std::thread> running;
            begin(running, made, {x, y}, grid, threads, kernel);
            for (auto& one : running) one.join();
        }
}
}  // namespace host
