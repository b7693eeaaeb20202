/* What adapters add to the sums of their rows, written once for both element types (TYPE, NAME).

   A row gets b (a x), in float32 between the two and to the end; panels have CHAIN_COLUMNS columns on every processor.
   Every number is one chain, first input to last and first rank to last, whatever rows are beside its own: equal rows
   of one adapter give equal bits. Rows without an adapter are not touched. */
#define CHAIN_VECTORS (CHAIN_COLUMNS / LANES)
#define CHAIN_ROWS 4
#define CHAIN_AHEAD 3072 /* bytes */

INLINE vf NAME(splat_at)(const TYPE *x) {
#if PACKED == 2
    return splat_word((uint32_t)*x << 16);
#else
    return splat(*x);
#endif
}

/* out[rows, CHAIN_COLUMNS] = x[rows, length] * panel[length, CHAIN_COLUMNS]; `rows` and `is_float`, whether x is one of
   floats, are constants. */
INLINE void NAME(chain_rows)(const int rows, const int is_float, const void *x, int64_t stride, const TYPE *panel,
                             int64_t length, float *out, int64_t out_stride) {
    vf total[CHAIN_ROWS][CHAIN_VECTORS];
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 2
        for (int v = 0; v < CHAIN_VECTORS; v++) total[r][v] = (vf){0};
    for (int64_t k = 0; k < length; k++) {
        vf column[CHAIN_VECTORS];
        __builtin_prefetch((const char *)(panel + k * CHAIN_COLUMNS) + CHAIN_AHEAD); /* the panels that follow lie there */
#pragma GCC unroll 2
        for (int v = 0; v < CHAIN_VECTORS; v++) column[v] = NAME(load)(panel + k * CHAIN_COLUMNS + v * LANES);
#pragma GCC unroll 4
        for (int r = 0; r < rows; r++) {
            vf value = is_float ? splat(((const float *)x)[r * stride + k])
                                : NAME(splat_at)((const TYPE *)x + r * stride + k);
#pragma GCC unroll 2
            for (int v = 0; v < CHAIN_VECTORS; v++) total[r][v] = fused(total[r][v], value, column[v]);
        }
    }
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 2
        for (int v = 0; v < CHAIN_VECTORS; v++) store_f32(out + r * out_stride + v * LANES, total[r][v]);
}

static void NAME(chain)(int64_t rows, const int is_float, const void *x, int64_t stride, const TYPE *panel,
                        int64_t length, float *out, int64_t out_stride) {
#define CASE(R)                                                                                      \
    case R:                                                                                          \
        if (is_float) NAME(chain_rows)(R, 1, x, stride, panel, length, out, out_stride);             \
        else NAME(chain_rows)(R, 0, x, stride, panel, length, out, out_stride);                      \
        return;
    switch (rows) { CASE(1) CASE(2) CASE(3) CASE(4) }
#undef CASE
}

/* Up to CHAIN_ROWS rows with one part; the last panel of outputs may be cut. */
static void NAME(adapt_part)(const AdapterPart *part, int64_t rows, const TYPE *x, float *extra, int64_t width) {
    _Alignas(64) float inner[CHAIN_ROWS * MAX_RANK], cut[CHAIN_ROWS * CHAIN_COLUMNS];
    for (int64_t c = 0; c * CHAIN_COLUMNS < part->rank; c++)
        NAME(chain)(rows, 0, x, part->inputs, (const TYPE *)part->a + c * part->inputs * CHAIN_COLUMNS, part->inputs,
                    inner + c * CHAIN_COLUMNS, MAX_RANK);
    for (int64_t c = 0; c < part->outputs; c += CHAIN_COLUMNS) {
        const TYPE *panel = (const TYPE *)part->b + c * part->rank;
        int64_t count = part->outputs - c;
        float *out = extra + part->first + c;
        if (count >= CHAIN_COLUMNS) {
            NAME(chain)(rows, 1, inner, MAX_RANK, panel, part->rank, out, width);
            continue;
        }
        NAME(chain)(rows, 1, inner, MAX_RANK, panel, part->rank, cut, CHAIN_COLUMNS);
        for (int64_t r = 0; r < rows; r++) memcpy(out + r * width, cut + r * CHAIN_COLUMNS, count * 4);
    }
}

static void NAME(adapt_rows)(const AdapterMatrix *m, int64_t rows, const TYPE *x, float *extra, int64_t width) {
    int64_t covered = 0;
    for (int64_t i = 0; i < m->count; i++) covered += m->parts[i].outputs;
    if (covered < width) memset(extra, 0, rows * width * 4);
    for (int64_t i = 0; i < m->count; i++) NAME(adapt_part)(m->parts + i, rows, x, extra, width);
}

/* extra[rows from the first adapted one, sums of p's matrix] of every row that has an adapter. */
static void NAME(adapt)(const Step *s, const Product *p, int64_t layer, int64_t place, int64_t sampled, float *extra) {
    const Matrix *m = p->matrix;
    int64_t width = m->gated ? 2 * m->outputs : m->outputs, inputs = m->inputs, blocks = 0;
    for (int64_t i = 0; i < s->num_segments; i++) {
        const Segment *g = s->segments + i;
        blocks += ((sampled ? g->sampled_end - g->sampled_first : g->end - g->first) + CHAIN_ROWS - 1) / CHAIN_ROWS;
    }
#pragma omp parallel for if (s->num_threads > 1 && blocks > 1) num_threads(s->num_threads) schedule(dynamic)
    for (int64_t block = 0; block < blocks; block++) {
        int64_t left = block;
        const Segment *g = s->segments;
        for (;; g++) {
            int64_t rows = sampled ? g->sampled_end - g->sampled_first : g->end - g->first;
            int64_t own = (rows + CHAIN_ROWS - 1) / CHAIN_ROWS;
            if (left < own) break;
            left -= own;
        }
        int64_t row = (sampled ? g->sampled_first : g->first) + left * CHAIN_ROWS;
        int64_t end = sampled ? g->sampled_end : g->end, rows = end - row < CHAIN_ROWS ? end - row : CHAIN_ROWS;
        const AdapterMatrix *a = (const AdapterMatrix *)((const char *)(g->layers + layer) + place);
        NAME(adapt_rows)(a, rows, (const TYPE *)p->x + row * inputs, extra + (row - p->extra_from) * width, width);
    }
}
#undef CHAIN_VECTORS
#undef CHAIN_ROWS
#undef CHAIN_AHEAD
