/* Norms, gate, rotation, and writing of keys and values, once for both element types (TYPE, NAME, PACKED from
   decoder.c). A word is 32 bits: a float, or a pair of bf16 values that are neighbours along the dimension
   that attention sums over; P is PACKED, or 1 in blocks of one token.

       kv [blocks, layers, kv_heads]  keys   [dim / PACKED][block_size] words     a column is a token
                                      values [block_size / P][dim] words          a row is P tokens */

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

/* out = root mean square norm of x, times weight. */
void NAME(norm)(const TYPE *x, const TYPE *weight, TYPE *out, int64_t rows, int64_t n, float epsilon,
                int64_t num_threads) {
#pragma omp parallel for if (num_threads > 1) num_threads(num_threads)
    for (int64_t row = 0; row < rows; row++)
        NAME(norm_row)(x + row * n, weight, out + row * n, n, epsilon);
}

INLINE vf NAME(silu)(vf x) {
    return NAME(rounded)(x * reciprocal(exponential(-maximum(x, splat(-86.0f))) + 1.0f));
}

INLINE void NAME(rotate)(const TYPE *x, const float *rope, TYPE *out, int64_t dim) {
    for (int64_t i = 0; i < dim / 2; i += LANES) {
        vf first = NAME(load)(x + i), second = NAME(load)(x + dim / 2 + i);
        vf cosine = load_f32(rope + i), sine = load_f32(rope + dim / 2 + i);
        NAME(store)(out + i, fused(first * cosine, -second, sine));
        NAME(store)(out + dim / 2 + i, fused(second * cosine, first, sine));
    }
}

/* Where a block has the keys of one head; its values follow. */
INLINE uint32_t *NAME(keys)(const Step *s, int32_t block, int64_t layer, int64_t head) {
    const Decoder *d = s->decoder;
    int64_t index = (block * d->num_layers + layer) * d->num_kv_heads + head;
    return (uint32_t *)s->kv + index * 2 * s->block_size * (d->head_dim / PACKED);
}

INLINE uint32_t *NAME(values)(const Step *s, uint32_t *keys) {
    return keys + s->block_size * (s->decoder->head_dim / PACKED);
}

/* Place of element d of the token at `offset` among a block's values, counted in elements. */
INLINE int64_t NAME(value_place)(const Step *s, int64_t offset, int64_t d) {
    int64_t pair = s->block_size < PACKED ? 1 : PACKED;
    return (offset / pair * s->decoder->head_dim + d) * pair + offset % pair;
}

static void NAME(write_token)(const Step *s, uint32_t *keys, int64_t offset, const uint32_t *key, const TYPE *value) {
    int64_t dim = s->decoder->head_dim, size = s->block_size;
    for (int64_t k = 0; k < dim / PACKED; k++) keys[k * size + offset] = key[k];
    TYPE *to = (TYPE *)NAME(values)(s, keys) + NAME(value_place)(s, offset, 0);
    int64_t step = size < PACKED ? 1 : PACKED;
    for (int64_t d = 0; d < dim; d++) to[d * step] = value[d];
}

/* Rotated queries of one token to `query`, its keys and values to their block. */
static void NAME(rotate_token)(const Step *s, const int32_t *table, int64_t layer, int64_t token,
                               const TYPE *qkv, TYPE *query) {
    const Decoder *d = s->decoder;
    int64_t dim = d->head_dim, heads = d->num_heads, kv_heads = d->num_kv_heads;
    int64_t position = s->positions[token], offset = position % s->block_size;
    const float *rope = d->rope + position * dim;
    int32_t block = table[position / s->block_size];
    const TYPE *x = qkv + token * (heads + 2 * kv_heads) * dim;
    TYPE normed[MAX_DIM];
    _Alignas(64) TYPE key[MAX_DIM];
    for (int64_t head = 0; head < heads + kv_heads; head++, x += dim) {
        const TYPE *weight = head < heads ? d->layers[layer].q_norm : d->layers[layer].k_norm, *source = x;
        if (weight) NAME(norm_row)(x, weight, normed, dim, d->epsilon), source = normed;
        TYPE *target = head < heads ? query + (token * heads + head) * dim : key;
        NAME(rotate)(source, rope, target, dim);
        if (head >= heads)
            NAME(write_token)(s, NAME(keys)(s, block, layer, head - heads), offset, (const uint32_t *)key,
                              x + kv_heads * dim);
    }
}
