// all_reduce_push.cu for the CPU: every rank a thread that starts the blocks of its calls, all at once.
#include "host.h"

#include "all_reduce_push.cu"

namespace {
constexpr int HIDDEN = 1640;  // 410 units: a round of all threads and a part of one

struct Rank {
    const uint2* partial;
    uint2 *residual, *out;
    const unsigned long long* slots;
    word* calls;
};

template <int WORLD>
void all_ranks(const Rank* ranks, const uint2* bias, const uint2* weight, int blocks, int tokens, int max_tokens,
               int add_bias, int norm, float epsilon) {
    std::vector<std::thread> running;
    for (int rank = 0; rank < WORLD; ++rank)
        running.emplace_back([=] {
            const Rank& one = ranks[rank];
            host::launch({blocks, 1}, THREADS, THREADS / 32 * 4, [&] {
                reduce_push<WORLD, HIDDEN>(one.partial, bias, one.residual, weight, one.out, one.slots, one.calls,
                                           tokens, max_tokens, rank, add_bias, norm, epsilon);
            });
        });
    for (auto& one : running) one.join();
}
}  // namespace

extern "C" int run(int world, const Rank* ranks, const void* bias, const void* weight, int blocks, int tokens,
                   int max_tokens, int add_bias, int norm, float epsilon) {
    if (world != 2 && world != 3) return 0;
    (world == 2 ? all_ranks<2> : all_ranks<3>)(ranks, static_cast<const uint2*>(bias),
                                               static_cast<const uint2*>(weight), blocks, tokens, max_tokens, add_bias,
                                               norm, epsilon);
    return 1;
}
