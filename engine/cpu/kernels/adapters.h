/* What adapters add to the sums of their rows, written once for both element types (TYPE, NAME, PACKED).

   A row gets b (a x), in float32 between the two and to the end; panels have CHAIN_COLUMNS columns of 32-bit words on every
   processor, as those of product.h have PANEL. A number of a x is the sum of CHAINS chains, word k of it in chain
   k % CHAINS, and one of b times that is one chain, first rank to last, whatever rows are beside its own: equal rows of one
   adapter give equal bits. Rows without an adapter are not touched.

   An item is some rows of one adapter, for whichever thread takes it. Its parts of the matrix are read once, line after
   line as they lie in the adapter's file: what waits is memory, and a reader that jumps between panels finds it slower.
   Inputs are a multiple of LANES, outputs one of CHAIN_COLUMNS (unknown_sizes of kernel_library.py). */
#define CHAIN_VECTORS (CHAIN_COLUMNS / LANES)
#define CHAINS 4
#define BESIDE (LANES == 16 ? 4 : 2) /* rows of an item */
#define INNER (MAX_PARTS * MAX_RANK)

/* Numbers along the summed dimension, in words. */
#if PACKED == 1
#define WORDS_OF(count) (count)
#else
#define WORDS_OF(count) (((count) + 1) / 2)
#endif

/* inner[rows, INNER] = CHAIN_COLUMNS numbers of a x of each row. `rows` is a constant. */
INLINE void NAME(shrink)(const int rows, const uint32_t *panel, const uint32_t *x, int64_t words, float *inner) {
    vf total[BESIDE][CHAINS][CHAIN_VECTORS];
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int c = 0; c < CHAINS; c++)
#pragma GCC unroll 2
            for (int v = 0; v < CHAIN_VECTORS; v++) total[r][c][v] = (vf){0};
    for (int64_t k = 0; k < words; k += CHAINS, panel += CHAINS * CHAIN_COLUMNS)
#pragma GCC unroll 4
        for (int c = 0; c < CHAINS; c++) {
            ask_for_adapter(panel + c * CHAIN_COLUMNS);
#pragma GCC unroll 2
            for (int v = 0; v < CHAIN_VECTORS; v++) {
                vu column = *(const vu_any *)(panel + c * CHAIN_COLUMNS + v * LANES);
#pragma GCC unroll 4
                for (int r = 0; r < rows; r++)
                    total[r][c][v] = NAME(multiply_add)(total[r][c][v], x[r * words + k + c], column);
            }
        }
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 2
        for (int v = 0; v < CHAIN_VECTORS; v++)
            store_f32(inner + r * INNER + v * LANES, (total[r][0][v] + total[r][1][v]) + (total[r][2][v] + total[r][3][v]));
}

/* c + x * b, for the one or two numbers of x that a word of b is for. */
INLINE vf NAME(add_ranks)(vf c, const float *x, vu b) {
#if PACKED == 1
    return fused(c, splat(x[0]), (vf)b);
#else
    c = fused(c, splat(x[0]), (vf)(b << 16));
    return fused(c, splat(x[1]), (vf)(b & UPPER_HALF));
#endif
}

/* out[rows, width] gets CHAIN_COLUMNS of its columns: one panel of b times inner. `rows` is a constant. */
INLINE void NAME(expand)(const int rows, const uint32_t *panel, const float *inner, int64_t words, float *out, int64_t width) {
    vf total[BESIDE][CHAIN_VECTORS];
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 2
        for (int v = 0; v < CHAIN_VECTORS; v++) total[r][v] = (vf){0};
    for (int64_t k = 0; k < words; k++) {
        ask_for_adapter(panel + k * CHAIN_COLUMNS);
#pragma GCC unroll 2
        for (int v = 0; v < CHAIN_VECTORS; v++) {
            vu column = *(const vu_any *)(panel + k * CHAIN_COLUMNS + v * LANES);
#pragma GCC unroll 4
            for (int r = 0; r < rows; r++) total[r][v] = NAME(add_ranks)(total[r][v], inner + r * INNER + k * PACKED, column);
        }
    }
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 2
        for (int v = 0; v < CHAIN_VECTORS; v++) store_f32(out + r * width + v * LANES, total[r][v]);
}

/* out[rows, width] = b (a x) of every part of a matrix, in the order of its file; `rows` is a constant. */
INLINE void NAME(adapt_rows)(const int rows, const AdapterMatrix *matrix, const uint32_t *x, float *out, int64_t width) {
    _Alignas(64) float inner[BESIDE * INNER];
    for (const AdapterPart *part = matrix->parts; part < matrix->parts + matrix->count; part++) {
        int64_t words = WORDS_OF(part->inputs), ranks = WORDS_OF(part->rank);
        for (int64_t c = 0; c < part->rank; c += CHAIN_COLUMNS) NAME(shrink)(rows, part->a + c * words, x, words, inner + c);
        for (int64_t c = 0; c < part->outputs; c += CHAIN_COLUMNS)
            NAME(expand)(rows, part->b + c * ranks, inner, ranks, out + part->first + c, width);
    }
}

static void NAME(adapt_some)(int64_t rows, const AdapterMatrix *matrix, const uint32_t *x, float *out, int64_t width) {
#define CASE(R)                                                                                      \
    case R: NAME(adapt_rows)(R, matrix, x, out, width); return;
    switch (rows) {
        CASE(1) CASE(2)
#if LANES == 16
        CASE(3) CASE(4)
#endif
    }
#undef CASE
}

/* Rows that have adapters, from `first` to `end`: all of a step's, or those that are sampled. */
INLINE int64_t NAME(first_row)(const Work *work, const Segment *g) { return work->sampled ? g->sampled_first : g->first; }
INLINE int64_t NAME(end_row)(const Work *work, const Segment *g) { return work->sampled ? g->sampled_end : g->end; }
INLINE int64_t NAME(segment_items)(const Work *work, const Segment *g) {
    return (NAME(end_row)(work, g) - NAME(first_row)(work, g) + BESIDE - 1) / BESIDE;
}

INLINE int64_t NAME(extra_width)(const Matrix *m) { return m->gated ? 2 * m->outputs : m->outputs; }

/* Rows of one adapter, and its parts of the matrix. */
typedef struct {
    const AdapterMatrix *matrix;
    int64_t first, end;
} NAME(Rows);

/* Where items are looked for: a segment, and how many items those before it have. */
typedef struct {
    const Segment *segment;
    int64_t before;
} NAME(Place);

/* Rows of the items from `*low` on that have one adapter, up to item `high`; `*low` becomes the next item. */
static NAME(Rows) NAME(next_rows)(const Work *work, NAME(Place) *place, int64_t *low, int64_t high) {
    int64_t items = NAME(segment_items)(work, place->segment);
    while (place->before + items <= *low) {
        place->before += items;
        items = NAME(segment_items)(work, ++place->segment);
    }
    const Segment *g = place->segment;
    if (high > place->before + items) high = place->before + items;
    int64_t from = NAME(first_row)(work, g), end = NAME(end_row)(work, g);
    NAME(Rows) rows = {(const AdapterMatrix *)((const char *)(g->layers + work->layer) + work->place),
                       from + (*low - place->before) * BESIDE, from + (high - place->before) * BESIDE};
    if (rows.end > end) rows.end = end;
    *low = high;
    return rows;
}

/* Columns that an adapter leaves alone are zeros. */
static void NAME(adapt_items)(const Work *work, int64_t low, int64_t high, char *room) {
    const Product *p = &work->product;
    NAME(Place) place = {work->step->segments, 0};
    int64_t first = NAME(first_row)(work, place.segment), width = NAME(extra_width)(p->matrix);
    int64_t words = WORDS_OF(p->matrix->inputs);
    float *extra = room ? (float *)room : work->out;
    while (low < high) {
        NAME(Rows) rows = NAME(next_rows)(work, &place, &low, high);
        int64_t outputs = 0;
        for (int64_t i = 0; i < rows.matrix->count; i++) outputs += rows.matrix->parts[i].outputs;
        if (outputs != width)
            memset(extra + (rows.first - first) * width, 0, (rows.end - rows.first) * width * sizeof(float));
        for (int64_t row = rows.first; row < rows.end; row += BESIDE) {
            int64_t count = rows.end - row < BESIDE ? rows.end - row : BESIDE;
            NAME(adapt_some)(count, rows.matrix, (const uint32_t *)p->x + row * words, extra + (row - first) * width, width);
        }
    }
}

static void NAME(take_adapted)(const Work *work, int64_t low, int64_t high, const char *room) {
    NAME(Place) place = {work->step->segments, 0};
    int64_t first = NAME(first_row)(work, place.segment), width = NAME(extra_width)(work->product.matrix);
    while (low < high) {
        NAME(Rows) rows = NAME(next_rows)(work, &place, &low, high);
        int64_t from = (rows.first - first) * width;
        memcpy((float *)work->out + from, (const float *)room + from, (rows.end - rows.first) * width * sizeof(float));
    }
}

/* extra[rows from the first adapted one, sums of p's matrix] of every row that has an adapter. */
static void NAME(adapt)(const Step *s, const Product *p, int64_t layer, int64_t place, int64_t sampled, float *extra) {
    Work work = {.compute = NAME(adapt_items), .take = NAME(take_adapted), .step = s, .product = *p, .layer = layer,
                 .place = place, .sampled = sampled, .out = extra, .own_items = MAX_ITEMS, .lent_items = 1,
                 .num_threads = s->num_threads};
    for (int64_t i = 0; i < s->num_segments; i++) work.items += NAME(segment_items)(&work, s->segments + i);
    run(s->team, &work);
}
#undef CHAIN_VECTORS
#undef CHAINS
#undef BESIDE
#undef INNER
#undef WORDS_OF
