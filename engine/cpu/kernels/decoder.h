/* What a step looks like to the kernels. Mirrored by engine/cpu/kernel_library.py, field by field. */
#ifndef BATON_DECODER_H
#define BATON_DECODER_H

#include <stdint.h>

#define KEY_TILE 64   /* keys per tile of attention */
#define MAX_ROWS 48   /* query rows (tokens x heads of one KV head) per tile */
#define MAX_DIM 256   /* head_dim */
#define MATRIX_ROWS 32 /* rows of a product that are in tile registers at once; see tiles.h */
#define CACHED_BYTES (576 << 10) /* of rows that stay in the second cache while a matrix passes by */

/* A matrix in panels; see product.h. */
typedef struct {
    const uint32_t *panels;
    const void *bias;              /* [outputs], or null; of a gated one [2 * outputs] */
    int64_t outputs, words;        /* of a panel: 32 bits of each of its columns, and of bytes their scales */
    int64_t gated;                 /* panels of [gate, up] columns; see pack */
    int64_t inputs, quantized;     /* to bytes; see quantized.h */
} Matrix;

typedef struct {
    Matrix qkv, out, gate_up, down;
    const void *input_norm, *post_norm;
    const void *q_norm, *k_norm;   /* [head_dim], or null */
} Layer;

/* What does not change from step to step. */
typedef struct {
    const Layer *layers;
    const void *norm;
    Matrix head;
    const float *rope;             /* [positions, head_dim]: cosines, then sines */
    int64_t num_layers, hidden, num_heads, num_kv_heads, head_dim;
    int64_t window;                /* 0 for none */
    float epsilon, scale;
} Decoder;

#define MAX_RANK 64
#define MAX_PARTS 3 /* matrices that one product does at once: q, k, v */
#define CHAIN_COLUMNS 16

/* What an adapter adds to some outputs of a matrix: b (a x), scaled already. See adapters.h. */
typedef struct {
    const uint32_t *a;             /* [rank / CHAIN_COLUMNS][words of the inputs][CHAIN_COLUMNS], the last filled up with zeros */
    const uint32_t *b;             /* [outputs / CHAIN_COLUMNS][words of the rank][CHAIN_COLUMNS], the same */
    int64_t rank, inputs, first, outputs;
} AdapterPart;

typedef struct {
    AdapterPart parts[MAX_PARTS];
    int64_t count;
} AdapterMatrix;

typedef struct {
    AdapterMatrix qkv, out, gate_up, down;
} AdapterLayer;

/* Rows of one adapter, and where they are among those sampled. */
typedef struct {
    const AdapterLayer *layers;
    int64_t first, end, sampled_first, sampled_end;
} Segment;

typedef struct Team Team; /* cores that others lend; see lending.h */

/* One step over a ragged batch; see engine/model/ragged_batch.py for the arrays, operations.h for kv. */
typedef struct {
    const Decoder *decoder;
    void *kv;
    const int32_t *positions;      /* [tokens] */
    const int32_t *query_starts;   /* [sequences + 1] */
    const int32_t *block_tables;   /* [sequences, table_width] */
    const int64_t *sample_rows;    /* [samples], ascending */
    void *residual;                /* [tokens, hidden]: the embedded tokens; used up */
    void *scratch;                 /* scratch_bytes(decoder, tokens, samples, helpers of the team, adapted tokens) */
    void *logits;                  /* [samples, vocabulary] */
    Team *team;                    /* or null */
    void *states;                  /* [samples, hidden]: what is wanted instead of logits, or NULL */
    int64_t table_width, num_sequences, num_tokens, num_samples;
    int64_t block_size, num_threads;
    const Segment *segments;       /* of the rows that have adapters: they come last */
    int64_t num_segments;
} Step;

/* One matrix product; see product.h. */
typedef struct {
    const Matrix *matrix;
    const void *x;                 /* [rows, words] */
    void *out;                     /* [rows, outputs] */
    float *wide;                   /* scratch of rows * inputs, where bf16 is widened or rows become bytes */
    Team *team;                    /* or null */
    int64_t rows;
    int64_t adds;                  /* to what is in out */
    int64_t num_threads;
    const float *extra;            /* [rows - extra_from, outputs, of a gated one 2 * outputs]: joins the sums; or null */
    int64_t extra_from;
} Product;

#endif
