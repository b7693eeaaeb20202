/* The operations, written once for both element types (TYPE, NAME, PACKED from decoder.c).

   Attention goes tile by tile with a running maximum and sum (Milakov & Gimelshein, arXiv 1805.02867;
   Dao et al., FlashAttention): scores = Q * K^T, weights = exp(scores - max), output += weights * V.
   Both products are one small routine over 32-bit words: a float, or a pair of bf16 values that are
   neighbours along the summed dimension. */

INLINE vf NAME(rounded)(vf x) {
#if PACKED == 2
    return (vf)(((vu)x + 0x7fff + (((vu)x >> 16) & 1)) & 0xffff0000u);
#else
    return x;
#endif
}

INLINE void NAME(norm_row)(const TYPE *x, const TYPE *weight, TYPE *out, int64_t n, float epsilon) {
    vf squares = {0};
    for (int64_t i = 0; i < n; i += LANES) {
        vf v = NAME(load)(x + i);
        squares = fused(squares, v, v);
    }
    float scale = 1.0f / sqrtf(sum(squares) / (float)n + epsilon);
    for (int64_t i = 0; i < n; i += LANES) {
        vf v = NAME(rounded)(NAME(load)(x + i) * scale);
        NAME(store)(out + i, v * NAME(load)(weight + i));
    }
}

/* residual += delta (if any); out = root mean square norm of residual, times weight. */
void NAME(add_norm)(TYPE *residual, const TYPE *delta, const TYPE *weight, TYPE *out, int64_t rows,
                    int64_t n, float epsilon, int64_t num_threads) {
#pragma omp parallel for if (num_threads > 1) num_threads(num_threads)
    for (int64_t row = 0; row < rows; row++) {
        TYPE *x = residual + row * n;
        if (delta)
            for (int64_t i = 0; i < n; i += LANES)
                NAME(store)(x + i, NAME(load)(x + i) + NAME(load)(delta + row * n + i));
        NAME(norm_row)(x, weight, out + row * n, n, epsilon);
    }
}

INLINE vf NAME(silu)(vf x) {
    return NAME(rounded)(x / (exponential(-maximum(x, splat(-87.0f))) + 1.0f));
}

INLINE void NAME(rotate)(const TYPE *x, const float *rope, TYPE *out, int64_t dim) {
    for (int64_t i = 0; i < dim / 2; i += LANES) {
        vf first = NAME(load)(x + i), second = NAME(load)(x + dim / 2 + i);
        vf cosine = load_f32(rope + i), sine = load_f32(rope + dim / 2 + i);
        NAME(store)(out + i, fused(first * cosine, -second, sine));
        NAME(store)(out + dim / 2 + i, fused(second * cosine, first, sine));
    }
}

INLINE TYPE *NAME(block)(const Step *s, int32_t block, int64_t layer, int side, int64_t head) {
    int64_t index = ((block * s->num_layers + layer) * 2 + side) * s->num_kv_heads + head;
    return (TYPE *)s->kv + index * s->block_size * s->head_dim;
}

static void NAME(rotate_token)(const Step *s, const int32_t *table, int64_t layer, int64_t token,
                               const TYPE *qkv, const TYPE *q_norm, const TYPE *k_norm, TYPE *query) {
    int64_t dim = s->head_dim, heads = s->num_heads, kv_heads = s->num_kv_heads;
    int64_t position = s->positions[token], offset = position % s->block_size * dim;
    const float *rope = s->rope + position * dim;
    int32_t block = table[position / s->block_size];
    const TYPE *x = qkv + token * (heads + 2 * kv_heads) * dim;
    TYPE normed[MAX_DIM];
    for (int64_t head = 0; head < heads + kv_heads; head++, x += dim) {
        const TYPE *weight = head < heads ? q_norm : k_norm, *source = x;
        if (weight) NAME(norm_row)(x, weight, normed, dim, s->epsilon), source = normed;
        TYPE *target = head < heads ? query + (token * heads + head) * dim
                                    : NAME(block)(s, block, layer, 0, head - heads) + offset;
        NAME(rotate)(source, rope, target, dim);
    }
    for (int64_t head = 0; head < kv_heads; head++, x += dim)
        memcpy(NAME(block)(s, block, layer, 1, head) + offset, x, dim * sizeof(TYPE));
}

INLINE void NAME(small_block)(const int rows, const int vectors, const uint32_t *a, int64_t lda,
                                const uint32_t *b, int64_t ldb, float *c, int64_t ldc, int64_t depth) {
    vf total[6][WIDE];
#pragma GCC unroll 6
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int v = 0; v < vectors; v++) total[r][v] = load_f32(c + r * ldc + v * LANES);
    for (int64_t k = 0; k < depth; k++) {
        vu column[WIDE];
#pragma GCC unroll 4
        for (int v = 0; v < vectors; v++) column[v] = *(const vu_any *)(b + k * ldb + v * LANES);
#pragma GCC unroll 6
        for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
            for (int v = 0; v < vectors; v++)
                total[r][v] = NAME(multiply_add)(total[r][v], a[r * lda + k], column[v]);
    }
#pragma GCC unroll 6
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int v = 0; v < vectors; v++) store_f32(c + r * ldc + v * LANES, total[r][v]);
}

/* c[rows, width] += a[rows, depth] * b[depth, width], in 32-bit words; width is a multiple of LANES. */
static void NAME(small_product)(const uint32_t *a, int64_t lda, const uint32_t *b, int64_t ldb, float *c,
                          int64_t ldc, int64_t rows, int64_t width, int64_t depth) {
    for (int64_t n = 0; n < width;) {
        int vectors = width - n >= WIDE * LANES ? WIDE : 1;
        for (int64_t r = 0; r < rows;) {
            int64_t left = rows - r;
            const uint32_t *ar = a + r * lda;
            float *cr = c + r * ldc + n;
#define CASE(R, V) NAME(small_block)(R, V, ar, lda, b + n, ldb, cr, ldc, depth), r += R
            if (vectors == 1) CASE(1, 1);
            else if (left >= 6) CASE(6, WIDE);
            else if (left >= 3) CASE(3, WIDE);
            else CASE(1, WIDE);
#undef CASE
        }
        n += vectors * LANES;
    }
}

/* Keys [start, start + KEY_TILE) as words [dim / PACKED, KEY_TILE]; values as [KEY_TILE / PACKED, dim].
   Keys from `limit` on are zero: their weights are zero too, and no stale NaN gets in. */
static void NAME(load_tile)(const Step *s, const int32_t *table, int64_t layer, int64_t head,
                            int64_t start, int64_t limit, uint32_t *keys, uint32_t *values) {
    static const TYPE zeros[MAX_DIM] = {0};
    const TYPE *key_rows[KEY_TILE], *value_rows[KEY_TILE];
    int64_t dim = s->head_dim, size = s->block_size, used = limit - start;
    int64_t index = start / size, offset = start % size, to_values = s->num_kv_heads * size * dim;
    const TYPE *block = NAME(block)(s, table[index], layer, 0, head);
    for (int64_t i = 0; i < KEY_TILE; i++, offset++) {
        if (offset == size && i < used) {
            block = NAME(block)(s, table[++index], layer, 0, head);
            offset = 0;
        }
        key_rows[i] = i < used ? block + offset * dim : zeros;
        value_rows[i] = i < used ? key_rows[i] + to_values : zeros;
    }
    for (int64_t group = 0; group < KEY_TILE && start + group < limit; group += LANES)
        for (int64_t d = 0; d < dim; d += LANES * PACKED) {
            const char *rows[LANES];
            for (int i = 0; i < LANES; i++) rows[i] = (const char *)(key_rows[group + i] + d);
            transpose(rows, keys + d / PACKED * KEY_TILE + group, KEY_TILE);
        }
    for (int64_t k = 0; k < KEY_TILE && start + k < limit; k += PACKED)
        for (int64_t d = 0; d < dim; d += LANES) {
#if PACKED == 2
            vu first = widen(value_rows[k] + d), second = widen(value_rows[k + 1] + d);
            *(vu_any *)(values + k / 2 * dim + d) = first | second << 16;
#else
            *(vu_any *)(values + k * dim + d) = *(const vu_any *)(value_rows[k] + d);
#endif
        }
}

/* Ask for the tile at `start` ahead of its use: a block's rows are far from the next block's, so the
   processor's own prefetcher does not see them coming. */
static void NAME(prefetch_tile)(const Step *s, const int32_t *table, int64_t layer, int64_t head,
                                int64_t start, int64_t limit) {
    int64_t size = s->block_size, row_bytes = s->head_dim * (int64_t)sizeof(TYPE);
    int64_t end = start + KEY_TILE < limit ? start + KEY_TILE : limit;
    for (int64_t position = start; position < end;) {
        int64_t offset = position % size, count = size - offset;
        if (count > end - position) count = end - position;
        for (int side = 0; side < 2; side++) {
            const char *row = (const char *)NAME(block)(s, table[position / size], layer, side, head);
            for (int64_t i = 0; i < count * row_bytes; i += 64)
                __builtin_prefetch(row + offset * row_bytes + i, 0, 2);
        }
        position += count;
    }
}

/* Turn one row's scores of keys [low, high) into weights in place, `count` keys wide; rescale its output. */
INLINE void NAME(soften)(float *scores, TYPE *weights, float *output, float *maximum_so_far,
                         float *sum_so_far, int64_t low, int64_t high, int64_t count, float scale,
                         int64_t dim) {
    const vi lane = lane_numbers();
    vf highest = splat(-INFINITY), total = {0};
    for (int64_t i = 0; i < count; i += LANES) {
        vf x = load_f32(scores + i) * scale;
        vi index = lane + (int32_t)i;
        if (i < low || i + LANES > high)
            x = choose((index >= (int32_t)low) & (index < (int32_t)high), x, splat(-INFINITY));
        store_f32(scores + i, x);
        highest = maximum(highest, x);
    }
    float best = max_lane(highest);
    if (best < *maximum_so_far) best = *maximum_so_far;
    for (int64_t i = 0; i < count; i += LANES) {
        vf x = exponential(load_f32(scores + i) - best);
        total += x;
        NAME(store)(weights + i, x);
    }
    if (best != *maximum_so_far) {
        float factor = exponential(splat(*maximum_so_far - best))[0]; /* 0 the first time */
        for (int64_t d = 0; d < dim; d += LANES) store_f32(output + d, load_f32(output + d) * factor);
        *sum_so_far *= factor;
        *maximum_so_far = best;
    }
    *sum_so_far += sum(total);
}

/* All heads of one KV head for `tokens` query tokens from flat row `first`. Row r is token r / group. */
static void NAME(attend_tile)(const Step *s, int64_t sequence, int64_t layer, int64_t kv_head,
                              int64_t first, int64_t tokens, const TYPE *query, TYPE *out) {
    _Alignas(64) uint32_t keys[MAX_DIM * KEY_TILE], values[MAX_DIM * KEY_TILE];
    _Alignas(64) uint32_t queries[MAX_ROWS * MAX_DIM];
    _Alignas(64) float scores[MAX_ROWS * KEY_TILE], outputs[MAX_ROWS * MAX_DIM];
    _Alignas(64) TYPE weights[MAX_ROWS * KEY_TILE];
    float highest[MAX_ROWS], sums[MAX_ROWS];
    int64_t dim = s->head_dim, words = dim / PACKED, group = s->num_heads / s->num_kv_heads;
    int64_t rows = tokens * group;
    const int32_t *table = s->block_tables + sequence * s->table_width;
    int64_t oldest = s->positions[first], newest = s->positions[first + tokens - 1];
    int64_t start = s->window && oldest >= s->window ? oldest - s->window + 1 : 0;
    for (int64_t r = 0; r < rows; r++) {
        int64_t head = kv_head * group + r % group;
        memcpy(queries + r * words, query + ((first + r / group) * s->num_heads + head) * dim,
               dim * sizeof(TYPE));
        highest[r] = -INFINITY;
        sums[r] = 0;
    }
    memset(outputs, 0, rows * dim * sizeof(float));
    for (start -= start % KEY_TILE; start <= newest; start += KEY_TILE) {
        int64_t used = newest + 1 - start < KEY_TILE ? newest + 1 - start : KEY_TILE;
        int64_t count = (used + LANES - 1) / LANES * LANES;
        NAME(prefetch_tile)(s, table, layer, kv_head, start + KEY_TILE, newest + 1);
        NAME(load_tile)(s, table, layer, kv_head, start, newest + 1, keys, values);
        memset(scores, 0, rows * KEY_TILE * sizeof(float));
        NAME(small_product)(queries, words, keys, KEY_TILE, scores, KEY_TILE, rows, count, words);
        for (int64_t r = 0; r < rows; r++) {
            int64_t position = s->positions[first + r / group];
            int64_t high = position + 1 - start, low = s->window ? high - s->window : 0;
            if (high > 0 && low < count)
                NAME(soften)(scores + r * KEY_TILE, weights + r * KEY_TILE, outputs + r * dim,
                             highest + r, sums + r, low, high, count, s->scale, dim);
            else
                memset(weights + r * KEY_TILE, 0, KEY_TILE * sizeof(TYPE));
        }
        NAME(small_product)((const uint32_t *)weights, KEY_TILE / PACKED, values, dim, outputs, dim, rows,
                      dim, (used + PACKED - 1) / PACKED);
    }
    for (int64_t r = 0; r < rows; r++) {
        int64_t head = kv_head * group + r % group;
        TYPE *target = out + ((first + r / group) * s->num_heads + head) * dim;
        for (int64_t d = 0; d < dim; d += LANES)
            NAME(store)(target + d, load_f32(outputs + r * dim + d) / sums[r]);
    }
}

INLINE int64_t NAME(tile_tokens)(const Step *s) {
    int64_t tokens = MAX_ROWS / (s->num_heads / s->num_kv_heads);
    return tokens > 0 ? tokens : 1;
}

/* Rotate q and k, store k and v in their blocks, attend. qkv is [tokens, heads + 2 kv_heads, dim];
   query is scratch of the size of out, [tokens, heads, dim]. */
void NAME(attend)(const Step *s, int64_t layer, const TYPE *qkv, const TYPE *q_norm,
                  const TYPE *k_norm, TYPE *query, TYPE *out) {
    int64_t tile = NAME(tile_tokens)(s);
    for (int64_t i = 0; i < s->num_sequences; i++) {
        const int32_t *table = s->block_tables + i * s->table_width;
        int64_t start = s->query_starts[i], end = s->query_starts[i + 1];
#pragma omp parallel for if (s->num_threads > 1 && end - start > 16) num_threads(s->num_threads)
        for (int64_t token = start; token < end; token++)
            NAME(rotate_token)(s, table, layer, token, qkv, q_norm, k_norm, query);
    }
#pragma omp parallel if (s->num_threads > 1) num_threads(s->num_threads)
    for (int64_t i = 0; i < s->num_sequences; i++) {
        int64_t start = s->query_starts[i], end = s->query_starts[i + 1];
        int64_t tiles = (end - start + tile - 1) / tile;
#pragma omp for schedule(dynamic) nowait
        for (int64_t item = 0; item < tiles * s->num_kv_heads; item++) {
            int64_t first = start + (tiles - 1 - item / s->num_kv_heads) * tile;
            int64_t tokens = end - first < tile ? end - first : tile;
            NAME(attend_tile)(s, i, layer, item % s->num_kv_heads, first, tokens, query, out);
        }
    }
}
