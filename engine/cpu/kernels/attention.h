/* Attention over keys and values where they lie in their blocks, written once for both element types.

   Tile by tile of KEY_TILE positions with a running maximum and sum (Milakov & Gimelshein, arXiv 1805.02867; Dao et
   al., FlashAttention): scores = Q * K^T, weights = exp(scores - max), output += weights * V. A tile is
   LANES positions a group, and a group never spans two blocks of at least LANES tokens, so that it is read in place.

   A row's sums go along dimension and position, tile by tile from position 0, whatever other rows there are. What lies
   beyond a row's own position is multiplied by a weight of zero; the sign of a zero that this may
   turn is made plus at the end. */

#define GROUPS (KEY_TILE / LANES)
#define GROUP_WORDS (LANES / PACKED) /* rows of words of a group's values */

/* One tile for one KV head: keys [dim / PACKED][stride] of each group, values [GROUP_WORDS][dim] of each. */
typedef struct {
    const uint32_t *keys[GROUPS], *values[GROUPS];
    int64_t stride, groups; /* groups that are used; the others point to something readable, their values to zeros */
} NAME(Tile);

/* Groups that do not lie in one piece, or end before they are full. */
typedef struct {
    _Alignas(64) uint32_t keys[GROUPS][MAX_DIM / PACKED * LANES], values[GROUPS][GROUP_WORDS * MAX_DIM];
} NAME(Gathered);

/* The first `used` tokens of a group's values, and zeros: their weights are zero too, and no stale NaN gets in. */
static void NAME(cut_values)(const uint32_t *values, int64_t used, int64_t dim, uint32_t *out) {
    int64_t whole = used / PACKED * dim;
    memcpy(out, values, whole * 4);
    memset(out + whole, 0, (GROUP_WORDS * dim - whole) * 4);
    if (used % PACKED)
        for (int64_t d = 0; d < dim; d++) out[whole + d] = values[whole + d] & 0xffff;
}

/* A group token by token, out of blocks that are smaller than it; zeros from `limit` on. */
static void NAME(gather)(const Step *s, const int32_t *table, int64_t layer, int64_t head, int64_t start,
                         int64_t limit, uint32_t *keys, uint32_t *values) {
    int64_t dim = s->decoder->head_dim, size = s->block_size;
    memset(keys, 0, dim / PACKED * LANES * 4);
    memset(values, 0, GROUP_WORDS * dim * 4);
    for (int64_t i = 0; i < LANES && start + i < limit; i++) {
        int64_t offset = (start + i) % size;
        uint32_t *from = NAME(keys)(s, table[(start + i) / size], layer, head);
        const TYPE *value = (const TYPE *)NAME(values)(s, from);
        for (int64_t k = 0; k < dim / PACKED; k++) keys[k * LANES + i] = from[k * size + offset];
        for (int64_t d = 0; d < dim; d++)
            ((TYPE *)values)[(i / PACKED * dim + d) * PACKED + i % PACKED] = value[NAME(value_place)(s, offset, d)];
    }
}

/* The tile of positions from `start` on, of which those from `limit` on are not there. */
static void NAME(find_tile)(const Step *s, const int32_t *table, int64_t layer, int64_t head, int64_t start,
                            int64_t limit, NAME(Gathered) *gathered, NAME(Tile) *tile) {
    static const uint32_t zeros[GROUP_WORDS * MAX_DIM];
    int64_t dim = s->decoder->head_dim, size = s->block_size, in_place = size >= LANES;
    tile->stride = in_place ? size : LANES;
    tile->groups = limit - start < KEY_TILE ? (limit - start + LANES - 1) / LANES : GROUPS;
    for (int64_t g = 0; g < GROUPS; g++) {
        int64_t position = start + g * LANES, used = limit - position;
        if (g >= tile->groups) {
            tile->keys[g] = tile->keys[0];
            tile->values[g] = zeros;
        } else if (in_place) {
            uint32_t *keys = NAME(keys)(s, table[position / size], layer, head);
            tile->keys[g] = keys + position % size;
            tile->values[g] = NAME(values)(s, keys) + position % size / PACKED * dim;
            if (used < LANES) {
                NAME(cut_values)(tile->values[g], used, dim, gathered->values[g]);
                tile->values[g] = gathered->values[g];
            }
        } else {
            NAME(gather)(s, table, layer, head, position, limit, gathered->keys[g], gathered->values[g]);
            tile->keys[g] = gathered->keys[g];
            tile->values[g] = gathered->values[g];
        }
    }
}

INLINE void NAME(score_block)(const int rows, const int vectors, const uint32_t *queries, int64_t words,
                              const NAME(Tile) *tile, int64_t group, float *scores) {
    vf total[6][WIDE];
    const uint32_t *keys[WIDE];
#pragma GCC unroll 4
    for (int v = 0; v < vectors; v++) keys[v] = tile->keys[group + v];
#pragma GCC unroll 6
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int v = 0; v < vectors; v++) total[r][v] = (vf){0};
    for (int64_t k = 0; k < words; k++) {
        vu column[WIDE];
#pragma GCC unroll 4
        for (int v = 0; v < vectors; v++) column[v] = *(const vu_any *)(keys[v] + k * tile->stride);
#pragma GCC unroll 6
        for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
            for (int v = 0; v < vectors; v++)
                total[r][v] = NAME(multiply_add)(total[r][v], queries[r * words + k], column[v]);
    }
#pragma GCC unroll 6
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int v = 0; v < vectors; v++)
            store_f32(scores + r * KEY_TILE + (group + v) * LANES, total[r][v]);
}

/* The first rows that read a tile's values ask for the next tile's. */
INLINE void NAME(mix_block)(const int rows, const int vectors, const int ahead, const uint32_t *weights,
                            const NAME(Tile) *tile, const NAME(Tile) *next, int64_t dim, int64_t first, float *outputs) {
    vf total[6][WIDE];
#pragma GCC unroll 6
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int v = 0; v < vectors; v++) total[r][v] = load_f32(outputs + r * dim + first + v * LANES);
    for (int64_t g = 0; g < tile->groups; g++)
        for (int64_t k = 0; k < GROUP_WORDS; k++) {
            const uint32_t *values = tile->values[g] + k * dim + first;
            vu column[WIDE];
#pragma GCC unroll 4
            for (int v = 0; v < vectors; v++) column[v] = *(const vu_any *)(values + v * LANES);
            if (ahead)
#pragma GCC unroll 4
                for (int v = 0; v < vectors; v++)
                    ask_for_kv(next->values[g] + k * dim + first + v * LANES);
#pragma GCC unroll 6
            for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
                for (int v = 0; v < vectors; v++)
                    total[r][v] = NAME(multiply_add)(
                        total[r][v], weights[r * (KEY_TILE / PACKED) + g * GROUP_WORDS + k], column[v]);
        }
#pragma GCC unroll 6
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int v = 0; v < vectors; v++) store_f32(outputs + r * dim + first + v * LANES, total[r][v]);
}

#define BY_ROWS(BLOCK, VECTORS)                                                                      \
    for (int64_t r = 0; r < rows;) {                                                                 \
        int64_t left = rows - r;                                                                     \
        if (left >= 6 && r) BLOCK(6, VECTORS, 0), r += 6;                                            \
        else if (left >= 6) BLOCK(6, VECTORS, 1), r += 6;                                            \
        else if (left >= 3 && r) BLOCK(3, VECTORS, 0), r += 3;                                       \
        else if (left >= 3) BLOCK(3, VECTORS, 1), r += 3;                                            \
        else if (r) BLOCK(1, VECTORS, 0), r += 1;                                                    \
        else BLOCK(1, VECTORS, 1), r += 1;                                                           \
    }

/* scores[rows, KEY_TILE] of the used groups = queries[rows, words] * keys. */
static void NAME(score)(int64_t rows, const uint32_t *queries, int64_t words, const NAME(Tile) *tile,
                        float *scores) {
#define BLOCK(R, V, AHEAD) NAME(score_block)(R, V, queries + r * words, words, tile, g, scores + r * KEY_TILE)
    for (int64_t g = 0; g < tile->groups;) {
        if (tile->groups - g >= WIDE) {
            BY_ROWS(BLOCK, WIDE)
            g += WIDE;
        } else {
            BY_ROWS(BLOCK, 1)
            g += 1;
        }
    }
#undef BLOCK
}

/* outputs[rows, dim] += weights[rows, KEY_TILE] * values. */
static void NAME(mix)(int64_t rows, const uint32_t *weights, const NAME(Tile) *tile, const NAME(Tile) *next, int64_t dim,
                      float *outputs) {
#define BLOCK(R, V, AHEAD)                                                                           \
    NAME(mix_block)(R, V, AHEAD, weights + r * (KEY_TILE / PACKED), tile, next, dim, n, outputs + r * dim)
    for (int64_t n = 0; n < dim;) {
        if (dim - n >= WIDE * LANES) {
            BY_ROWS(BLOCK, WIDE)
            n += WIDE * LANES;
        } else {
            BY_ROWS(BLOCK, 1)
            n += LANES;
        }
    }
#undef BLOCK
}
#undef BY_ROWS

/* Turn one row's scores of positions [low, high) of a tile into weights; rescale its output. */
INLINE void NAME(soften)(const float *scores, TYPE *weights, float *output, float *maximum_so_far,
                         float *sum_so_far, int64_t low, int64_t high, float scale, int64_t dim) {
    const vi lane = lane_numbers();
    vf x[GROUPS], highest = splat(-INFINITY), total = {0};
#pragma GCC unroll 8
    for (int i = 0; i < GROUPS; i++) {
        x[i] = load_f32(scores + i * LANES) * scale;
        if (low > 0 || high < KEY_TILE) {
            vi index = lane + i * LANES;
            x[i] = choose((index >= (int32_t)low) & (index < (int32_t)high), x[i], splat(-INFINITY));
        }
        highest = maximum(highest, x[i]);
    }
    float best = max_lane(highest);
    if (best < *maximum_so_far) best = *maximum_so_far;
#pragma GCC unroll 8
    for (int i = 0; i < GROUPS; i++) {
        vf weight = exponential(x[i] - best);
        total += weight;
        NAME(store)(weights + i * LANES, weight);
    }
    if (best != *maximum_so_far) {
        float factor = exponential(splat(*maximum_so_far - best))[0]; /* 0 the first time */
        for (int64_t d = 0; d < dim; d += LANES) store_f32(output + d, load_f32(output + d) * factor);
        *sum_so_far *= factor;
        *maximum_so_far = best;
    }
    *sum_so_far += sum(total);
}

/* Ask for some of a tile's keys, words [low, high) of each: its blocks are far from those before, so that the processor's
   own prefetcher does not see them coming, and asked for all at once they would be waited for. */
INLINE void NAME(prefetch_keys)(const NAME(Tile) *tile, int64_t low, int64_t high) {
    for (int64_t k = low; k < high; k++)
        for (int64_t g = 0; g < tile->groups; g++) ask_for_kv(tile->keys[g] + k * tile->stride);
}

INLINE void NAME(prefetch_values)(const NAME(Tile) *tile, int64_t dim) {
    for (int64_t g = 0; g < tile->groups; g++)
        for (int64_t i = 0; i < GROUP_WORDS * dim; i += 16) __builtin_prefetch(tile->values[g] + i, 0, 2);
}

/* scores = queries * keys, in AMX tiles where there are some. */
static void NAME(score_tile)(int64_t rows, const uint32_t *queries, int64_t words, const NAME(Tile) *tile,
                             float *scores) {
#if PACKED == 2 && defined(__AMX_BF16__)
    if (tiles_permitted) {
        score_tiles(rows, queries, words, tile->keys, tile->stride, scores);
        return;
    }
#endif
    NAME(score)(rows, queries, words, tile, scores);
}

/* outputs += weights * values, likewise. */
static void NAME(mix_tile)(int64_t rows, const TYPE *weights, const NAME(Tile) *tile, const NAME(Tile) *next, int64_t dim,
                           float *outputs) {
#if PACKED == 2 && defined(__AMX_BF16__)
    if (tiles_permitted) {
        if (next != tile) prefetch_values_bf16(next, dim);
        mix_tiles(rows, (const uint32_t *)weights, tile->values, dim, outputs);
        return;
    }
#endif
    NAME(mix)(rows, (const uint32_t *)weights, tile, next, dim, outputs);
}

/* All heads of one KV head for `tokens` query tokens from flat row `first`. Row r is token r / group. */
static void NAME(attend_tile)(const Step *s, int64_t sequence, int64_t layer, int64_t kv_head,
                              int64_t first, int64_t tokens, const TYPE *query, TYPE *out) {
    NAME(Gathered) gathered[2];
    NAME(Tile) tiles[2];
    _Alignas(64) uint32_t queries[MAX_ROWS * MAX_DIM / PACKED];
    _Alignas(64) float scores[MAX_ROWS * KEY_TILE], outputs[MAX_ROWS * MAX_DIM];
    _Alignas(64) TYPE weights[MAX_ROWS * KEY_TILE];
    float highest[MAX_ROWS], sums[MAX_ROWS];
    const Decoder *d = s->decoder;
    int64_t dim = d->head_dim, words = dim / PACKED, group = d->num_heads / d->num_kv_heads;
    int64_t rows = tokens * group, padded = (rows + 15) / 16 * 16;
    const int32_t *table = s->block_tables + sequence * s->table_width;
    int64_t oldest = s->positions[first], newest = s->positions[first + tokens - 1];
    int64_t start = d->window && oldest >= d->window ? oldest - d->window + 1 : 0;
    for (int64_t r = 0; r < rows; r++) {
        int64_t head = kv_head * group + r % group;
        memcpy(queries + r * words, query + ((first + r / group) * d->num_heads + head) * dim,
               dim * sizeof(TYPE));
        highest[r] = -INFINITY;
        sums[r] = 0;
    }
    memset(queries + rows * words, 0, (padded - rows) * words * 4);
    memset(weights + rows * KEY_TILE, 0, (padded - rows) * KEY_TILE * sizeof(TYPE));
    memset(outputs, 0, padded * dim * sizeof(float));
    start -= start % KEY_TILE;
    NAME(find_tile)(s, table, layer, kv_head, start, newest + 1, gathered, tiles);
    for (int64_t n = 0; start <= newest; start += KEY_TILE, n ^= 1) {
        const NAME(Tile) *tile = tiles + n, *next = tile;
        if (start + KEY_TILE <= newest) {
            NAME(find_tile)(s, table, layer, kv_head, start + KEY_TILE, newest + 1, gathered + (n ^ 1), tiles + (n ^ 1));
            next = tiles + (n ^ 1);
        }
        NAME(score_tile)(rows, queries, words, tile, scores);
        for (int64_t r = 0; r < rows; r++) {
            if (next != tile) NAME(prefetch_keys)(next, r * words / rows, (r + 1) * words / rows);
            int64_t high = s->positions[first + r / group] + 1 - start, low = d->window ? high - d->window : 0;
            if (high > 0 && low < KEY_TILE)
                NAME(soften)(scores + r * KEY_TILE, weights + r * KEY_TILE, outputs + r * dim,
                             highest + r, sums + r, low, high, d->scale, dim);
            else
                memset(weights + r * KEY_TILE, 0, KEY_TILE * sizeof(TYPE));
        }
        NAME(mix_tile)(rows, weights, tile, next, dim, outputs);
    }
    for (int64_t r = 0; r < rows; r++) {
        int64_t head = kv_head * group + r % group;
        TYPE *target = out + ((first + r / group) * d->num_heads + head) * dim;
        for (int64_t i = 0; i < dim; i += LANES)
            NAME(store)(target + i, load_f32(outputs + r * dim + i) / sums[r] + 0.0f);
    }
}

/* An item is the heads of one KV head for the tokens of one tile; the last tiles of a sequence, which take longest,
   come first. `first` becomes the flat row of the first token. */
typedef struct {
    int64_t sequence, kv_head, first, tokens;
} NAME(Item);

INLINE int64_t NAME(tokens_of_tile)(const Decoder *d) { return MAX_ROWS / (d->num_heads / d->num_kv_heads); }

INLINE int64_t NAME(items_of)(const Step *s, int64_t sequence) {
    int64_t tile = NAME(tokens_of_tile)(s->decoder);
    return (s->query_starts[sequence + 1] - s->query_starts[sequence] + tile - 1) / tile * s->decoder->num_kv_heads;
}

static NAME(Item) NAME(item)(const Step *s, int64_t number) {
    int64_t tile = NAME(tokens_of_tile)(s->decoder), sequence = 0, items;
    for (; number >= (items = NAME(items_of)(s, sequence)); sequence++) number -= items;
    int64_t first = s->query_starts[sequence] + (items - 1 - number) / s->decoder->num_kv_heads * tile;
    int64_t tokens = s->query_starts[sequence + 1] - first;
    return (NAME(Item)){sequence, number % s->decoder->num_kv_heads, first, tokens < tile ? tokens : tile};
}

static void NAME(attend_items)(const Work *work, int64_t low, int64_t high, char *room) {
    const Step *s = work->step;
    for (; low < high; low++) {
        NAME(Item) item = NAME(item)(s, low);
        NAME(attend_tile)(s, item.sequence, work->layer, item.kv_head, item.first, item.tokens, work->query,
                          room ? (TYPE *)room : work->out);
    }
    release_tiles();
}

static void NAME(take_attended)(const Work *work, int64_t low, int64_t high, const char *room) {
    const Decoder *d = work->step->decoder;
    int64_t width = d->num_heads / d->num_kv_heads * d->head_dim;
    for (; low < high; low++) {
        NAME(Item) item = NAME(item)(work->step, low);
        for (int64_t token = item.first; token < item.first + item.tokens; token++) {
            int64_t at = (token * d->num_kv_heads + item.kv_head) * width;
            memcpy((TYPE *)work->out + at, (const TYPE *)room + at, width * sizeof(TYPE));
        }
    }
}

/* Rotate q and k, store k and v in their blocks, attend. qkv is [tokens, heads + 2 kv_heads, dim];
   query is scratch of the size of out, [tokens, heads, dim]. */
void NAME(attend)(const Step *s, int64_t layer, const TYPE *qkv, TYPE *query, TYPE *out) {
    Work work = {.compute = NAME(attend_items), .take = NAME(take_attended), .step = s, .layer = layer, .query = query,
                 .out = out, .own_items = 1, .lent_items = 1, .num_threads = s->num_threads};
    for (int64_t i = 0; i < s->num_sequences; i++) {
        const int32_t *table = s->block_tables + i * s->table_width;
        int64_t start = s->query_starts[i], end = s->query_starts[i + 1];
        work.items += NAME(items_of)(s, i);
#pragma omp parallel for if (s->num_threads > 1 && end - start > 16) num_threads(s->num_threads)
        for (int64_t token = start; token < end; token++)
            NAME(rotate_token)(s, table, layer, token, qkv, query);
    }
    run(s->team, &work);
}
#undef GROUPS
#undef GROUP_WORDS
