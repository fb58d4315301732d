// experts_grouped.cu for the CPU: one function for its kernels, instances by groups and ring.
#include "host.h"

#include "mxfp4.cuh"
#include "grouped_ring.cuh"
#include "grouped_products.cuh"
#include "grouped_finish.cuh"
#include "experts_grouped.cu"

namespace {
template <int GROUPS, int STAGES, int COLUMNS, bool WIDE>
void one(int part, int blocks, int shared, const void* x, const int* order, const int* expert, const int* first,
         const int* count, const void* codes, const void* scales, const void* bias, const float* weight, void* out,
         int routes, int slots, int top_k, int row_count, float alpha, float limit) {
    auto *active = static_cast<const uint4*>(x), *code_words = static_cast<const uint4*>(codes);
    auto* scale_words = static_cast<const uint4*>(scales);
    auto* biases = static_cast<const half_word*>(bias);
    if (part == 0)
        return host::launch({slots, COLUMNS / GATHERED}, GATHERING, 0, [&] {
            gather_routes<GROUPS>(active, order, expert, first, count, static_cast<uint4*>(out), routes, top_k);
        });
    host::launch({blocks, 1}, MULTIPLYING + COPYING, shared, [&] {
        if (part == 2)
            down_grouped<GROUPS, STAGES, COLUMNS, WIDE>(active, order, expert, first, count, code_words, scale_words,
                                                        biases, weight, out, routes, slots, row_count);
        else
            gate_up_grouped<GROUPS, STAGES, COLUMNS>(active, order, expert, first, count, code_words, scale_words,
                                                     biases, out, routes, slots, row_count, alpha, limit);
    });
}
}  // namespace

#define CASE(GROUPS_, STAGES_, COLUMNS_)                                                                               \
    if (groups == GROUPS_ && stages == STAGES_ && columns == COLUMNS_)                                                 \
        return (wide ? one<GROUPS_, STAGES_, COLUMNS_, true> : one<GROUPS_, STAGES_, COLUMNS_, false>)(              \
                   part, blocks, shared, x, order, expert, first, count, codes, scales, bias, weight, out, routes,     \
                   slots, top_k, row_count, alpha, limit),                                                             \
               1

// `part`: 0 gathers, 1 is gate_up, 2 is down.
extern "C" int run(int part, int groups, int stages, int columns, int wide, int blocks, int shared, const void* x, const int* order,
                   const int* expert, const int* first, const int* count, const void* codes, const void* scales,
                   const void* bias, const float* weight, void* out, int routes, int slots, int top_k, int row_count,
                   float alpha, float limit) {
    CASE(9, 2, 128);
    CASE(6, 2, 128);
    CASE(10, 3, 64);
    CASE(11, 3, 64);
    return 0;
}
