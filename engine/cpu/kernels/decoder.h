/* What a step looks like to the kernels. Mirrored by engine/cpu/kernel_library.py, field by field. */
#ifndef BATON_DECODER_H
#define BATON_DECODER_H

#include <stdint.h>

#define KEY_TILE 64   /* keys per tile of attention */
#define MAX_ROWS 48   /* query rows (tokens x heads of one KV head) per tile */
#define MAX_DIM 256   /* head_dim */

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

#endif
