// projection_stream.cu for the CPU, at one width.
#include "host.h"

#include "projection_stream.cu"

constexpr int COLUMNS = 328, HALF = 16;  // 41 chunks: a round of 32 lanes and a part of one

extern "C" void project(int warps, int blocks, const void* weight, const void* bias, const void* x, void* out, int rows,
                        int add_bias, int add_residual) {
    host::launch({blocks, 1}, 32 * warps, warps * COLUMNS * 2, [&] {
        project_one<COLUMNS>(static_cast<const uint4*>(weight), static_cast<const half_word*>(bias),
                             static_cast<const uint4*>(x), static_cast<half_word*>(out), rows, add_bias, add_residual);
    });
}

extern "C" void begin_attention(int warps, int blocks, const void* weight, const void* bias, const void* x,
                                const void* cosine, const void* sine, const long long* slot, void* query, void* key,
                                void* value, const int* strides, int page_size, int query_heads, int kv_heads,
                                int add_bias) {
    auto half = [](const void* pointer) { return static_cast<const half_word*>(pointer); };
    host::launch({blocks, 1}, 32 * warps, warps * COLUMNS * 4, [&] {
        begin_attention_one<COLUMNS, HALF>(
            static_cast<const uint4*>(weight), half(bias), static_cast<const uint4*>(x), half(cosine), half(sine), slot,
            static_cast<half_word*>(query), static_cast<half_word*>(key), static_cast<half_word*>(value), strides[0],
            strides[1], strides[2], strides[3], strides[4], strides[5], page_size, query_heads, kv_heads, add_bias);
    });
}
