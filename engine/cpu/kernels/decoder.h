/* What a step looks like to the kernels. Mirrored by engine/cpu/kernel_library.py, field by field. */
#ifndef BATON_DECODER_H
#define BATON_DECODER_H

#include <stdint.h>

#define KEY_TILE 64   /* keys per tile of attention */
#define MAX_ROWS 48   /* query rows (tokens x heads of one KV head) per tile */
#define MAX_DIM 256   /* head_dim */
#define MATRIX_ROWS 32 /* rows of a product that are in tile registers at once; see tiles.h */
#define AHEAD_WORDS 2048 /* how far before its use a panel is asked for */
#define CACHED_BYTES (576 << 10) /* of rows that stay in the second cache while a matrix passes by */

/* One step over a ragged batch; see engine/model/ragged_batch.py for the arrays.
   kv is [blocks, layers, 2, kv_heads, block_size, head_dim]. */
typedef struct {
    void *kv;
    const float *rope;             /* [positions, head_dim]: cosines, then sines */
    const int32_t *positions;      /* [tokens] */
    const int32_t *query_starts;   /* [sequences + 1] */
    const int32_t *context_lengths;/* [sequences] */
    const int32_t *block_tables;   /* [sequences, table_width] */
    int64_t table_width, num_sequences, num_tokens;
    int64_t num_layers, num_heads, num_kv_heads, head_dim, block_size;
    int64_t window;                /* 0 for none */
    int64_t num_threads;
    float epsilon, scale;
} Step;

/* One matrix product; see product.h. */
typedef struct {
    const uint32_t *panels;
    const void *x;                 /* [rows, words] */
    const void *bias;              /* [outputs], or null */
    void *out;                     /* [rows, outputs] */
    float *wide;                   /* scratch of rows * words * 2, where bf16 is widened */
    int64_t rows, outputs, words;
    int64_t gated;                 /* panels of [gate, up] columns; see pack */
    int64_t num_threads;
} Product;

#endif
