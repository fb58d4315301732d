// experts_stream.cu for the CPU: one function for both projections, instances by how they are cut.
#include "host.h"

#include "mxfp4.cuh"
#include "expert_routes.cuh"
#include "experts_finish.cuh"
#include "experts_stream.cu"

namespace {
template <int GROUPS, int ROW_TILES, int COLUMN_TILES, int WARPS, int TEAM_WARPS, int AHEAD, bool LISTED>
void both(bool down, int blocks, int shared, const void* x, const int* index, const int* order, const int* expert,
          const int* first, const int* count, const void* codes, const void* scales, const void* bias,
          const float* weight, void* out, int routes, int experts, int slots, int top_k, int row_count, float alpha,
          float limit) {
    auto* code_words = static_cast<const uint4*>(codes);
    auto* scale_words = static_cast<const word*>(scales);
    auto* biases = static_cast<const half_word*>(bias);
    auto* active = static_cast<const uint4*>(x);
    host::launch({blocks, 1}, 32 * WARPS, shared, [&] {
        if (down)
            down_stream<GROUPS, ROW_TILES, COLUMN_TILES, WARPS, TEAM_WARPS, AHEAD, 1, LISTED>(
                active, index, order, expert, first, count, code_words, scale_words, biases, weight,
                static_cast<float*>(out), routes, experts, slots, row_count);
        else
            gate_up_stream<GROUPS, ROW_TILES, COLUMN_TILES, WARPS, TEAM_WARPS, AHEAD, 1, LISTED>(
                active, index, order, expert, first, count, code_words, scale_words, biases,
                static_cast<half_word*>(out), routes, experts, slots, top_k, row_count, alpha, limit);
    });
}
}  // namespace

#define CASE(GROUPS_, ROW_TILES_, COLUMN_TILES_, WARPS_, TEAM_WARPS_, AHEAD_)                                           \
    if (groups == GROUPS_ && row_tiles == ROW_TILES_ && column_tiles == COLUMN_TILES_ && warps == WARPS_ &&            \
        team_warps == TEAM_WARPS_ && ahead == AHEAD_)                                                                  \
        return (listed ? both<GROUPS_, ROW_TILES_, COLUMN_TILES_, WARPS_, TEAM_WARPS_, AHEAD_, true>                   \
                       : both<GROUPS_, ROW_TILES_, COLUMN_TILES_, WARPS_, TEAM_WARPS_, AHEAD_, false>)(                \
                   down, blocks, shared, x, index, order, expert, first, count, codes, scales, bias, weight, out,      \
                   routes, experts, slots, top_k, row_count, alpha, limit),                                            \
               1

extern "C" int run(int down, int groups, int row_tiles, int column_tiles, int warps, int team_warps, int ahead,
                   int listed, int blocks, int shared, const void* x, const int* index, const int* order,
                   const int* expert, const int* first, const int* count, const void* codes, const void* scales,
                   const void* bias, const float* weight, void* out, int routes, int experts, int slots, int top_k,
                   int row_count, float alpha, float limit) {
    CASE(9, 1, 1, 4, 1, 2);
    CASE(6, 1, 1, 4, 1, 2);
    CASE(9, 2, 1, 4, 2, 1);
    CASE(2, 2, 1, 4, 1, 1);
    CASE(22, 1, 1, 8, 4, 2);
    CASE(9, 1, 2, 4, 2, 1);
    CASE(2, 1, 2, 4, 1, 1);
    CASE(22, 2, 2, 4, 2, 2);
    return 0;
}
