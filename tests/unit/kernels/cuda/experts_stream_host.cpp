// experts_stream.cu for the CPU: instances by how they are cut.
#include "host.h"

#include "mxfp4.cuh"
#include "expert_routes.cuh"
#include "experts_finish.cuh"
#include "experts_stream.cu"

namespace {
struct Arguments {
    const uint4* hidden;
    const int *index, *order, *expert, *first, *count;
    const uint4* up_codes;
    const word* up_scales;
    const half_word* up_bias;
    uint4* inner;
    const uint4* down_codes;
    const word* down_scales;
    const half_word* down_bias;
    const float* weight;
    float* out;
    int* ready;
};

template <int HIDDEN_GROUPS, int GROUPS, int ROW_TILES, int COLUMN_TILES, int WARPS, int TEAM_WARPS, int DOWN_TEAM_WARPS,
          int AHEAD, int DOWN_AHEAD, int BLOCKS, bool LISTED>
void play(const Arguments& a, int shared, int routes, int experts, int slots, int top_k, float alpha, float limit) {
    host::launch_together({2 * BLOCKS, 1}, 32 * WARPS, shared, [&] {
        experts_stream<HIDDEN_GROUPS, GROUPS, ROW_TILES, COLUMN_TILES, WARPS, TEAM_WARPS, DOWN_TEAM_WARPS, AHEAD,
                       DOWN_AHEAD, BLOCKS, LISTED>(
            a.hidden, a.index, a.order, a.expert, a.first, a.count, a.up_codes, a.up_scales, a.up_bias, a.inner,
            a.down_codes, a.down_scales, a.down_bias, a.weight, a.out, a.ready, routes, experts, slots, top_k, alpha,
            limit);
    });
}
}  // namespace

#define CASE(...)                                                                                         \
    if (std::string(name) == "experts_stream<" #__VA_ARGS__ ", true>")                                    \
        return play<__VA_ARGS__, true>(a, shared, routes, experts, slots, top_k, alpha, limit), 1;        \
    if (std::string(name) == "experts_stream<" #__VA_ARGS__ ", false>")                                   \
    return play<__VA_ARGS__, false>(a, shared, routes, experts, slots, top_k, alpha, limit), 1

extern "C" int run(const char* name, const Arguments& a, int shared, int routes, int experts, int slots, int top_k,
                   float alpha, float limit) {
    CASE(9, 6, 1, 1, 4, 1, 1, 2, 2, 2);
    CASE(9, 2, 2, 1, 4, 2, 1, 1, 1, 1);
    CASE(22, 5, 1, 1, 8, 4, 2, 2, 1, 1);
    CASE(9, 2, 1, 2, 4, 2, 1, 1, 1, 1);
    CASE(10, 5, 2, 2, 4, 2, 2, 2, 1, 1);
    return 0;
}
