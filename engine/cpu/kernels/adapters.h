/* What adapters add to the sums of their rows, written once for both element types (TYPE, NAME).

   A row gets b (a x), in float32 between the two and to the end; panels have CHAIN_COLUMNS columns on every processor.
   Some rows are an item for whichever thread takes it. Every number is one chain, first input to last and first rank to
   last, whatever rows are beside its own: equal rows of one adapter give equal bits. Rows without an adapter are not
   touched.

   A chain waits for itself at each of its steps, so several go on side by side: rows that share a panel, or panels. */
#define CHAIN_VECTORS (CHAIN_COLUMNS / LANES)
#define CHAIN_AHEAD 3072 /* bytes */
#define BESIDE 4         /* chains that go on side by side, and rows of an item */
#define SLICE 768        /* inputs of a row that are floats at once */

/* CHAIN_COLUMNS numbers of a row, the panel that makes them and what it is multiplied with. */
typedef struct {
    const TYPE *panel;
    const float *x;
    float *out;
} NAME(Chain);

/* Goes on with `count` chains, a constant, for `length` steps. `shared`, a constant: all have one panel. */
INLINE void NAME(run_chains)(const int count, const int shared, const NAME(Chain) *chains, int64_t length) {
    vf total[BESIDE][CHAIN_VECTORS];
    const TYPE *panels[BESIDE];
    const float *x[BESIDE];
#pragma GCC unroll 4
    for (int i = 0; i < count; i++) {
        panels[i] = chains[i].panel;
        x[i] = chains[i].x;
#pragma GCC unroll 2
        for (int v = 0; v < CHAIN_VECTORS; v++) total[i][v] = load_f32(chains[i].out + v * LANES);
    }
    for (int64_t k = 0; k < length; k++) {
        vf column[CHAIN_VECTORS];
#pragma GCC unroll 4
        for (int i = 0; i < count; i++) {
            if (i == 0 || !shared) {
                const TYPE *at = panels[i] + k * CHAIN_COLUMNS;
                __builtin_prefetch((const char *)at + CHAIN_AHEAD); /* the panels that follow lie there */
#pragma GCC unroll 2
                for (int v = 0; v < CHAIN_VECTORS; v++) column[v] = NAME(load)(at + v * LANES);
            }
            vf value = splat(x[i][k]);
#pragma GCC unroll 2
            for (int v = 0; v < CHAIN_VECTORS; v++) total[i][v] = fused(total[i][v], value, column[v]);
        }
    }
#pragma GCC unroll 4
    for (int i = 0; i < count; i++)
#pragma GCC unroll 2
        for (int v = 0; v < CHAIN_VECTORS; v++) store_f32(chains[i].out + v * LANES, total[i][v]);
}

/* Chains that wait for others, until there are BESIDE of them. */
typedef struct {
    NAME(Chain) chains[BESIDE];
    int64_t count, length;
    int shared;
} NAME(Chains);

static void NAME(run_waiting)(NAME(Chains) *waiting) {
    const NAME(Chain) *chains = waiting->chains;
    int64_t length = waiting->length;
#define CASE(C)                                                                                      \
    case C: NAME(run_chains)(C, 0, chains, length); break;
    if (waiting->shared && waiting->count == BESIDE) NAME(run_chains)(BESIDE, 1, chains, length);
    else switch (waiting->count) { CASE(1) CASE(2) CASE(3) CASE(4) }
#undef CASE
    waiting->count = 0;
}

INLINE void NAME(add_chain)(NAME(Chains) *waiting, const TYPE *panel, const float *x, float *out) {
    waiting->chains[waiting->count++] = (NAME(Chain)){panel, x, out};
    if (waiting->count == BESIDE) NAME(run_waiting)(waiting);
}

INLINE const AdapterMatrix *NAME(matrix_of)(const Work *work, const Segment *g) {
    return (const AdapterMatrix *)((const char *)(g->layers + work->layer) + work->place);
}

/* Rows of an item: their adapters' parts of the matrix. */
typedef struct {
    const AdapterMatrix *of[BESIDE];
    int64_t count;
    int shared; /* BESIDE rows of one adapter */
} NAME(Rows);

/* inner[rows, MAX_PARTS * MAX_RANK] = a x of each part. */
static void NAME(times_a)(const NAME(Rows) *rows, const TYPE *x, int64_t inputs, float *inner) {
    _Alignas(64) float wide[BESIDE * SLICE];
    memset(inner, 0, rows->count * MAX_PARTS * MAX_RANK * sizeof(float));
    for (int64_t from = 0, length; from < inputs; from += length) {
        length = inputs - from < SLICE ? inputs - from : SLICE;
        for (int64_t r = 0; r < rows->count; r++)
            for (int64_t k = 0; k < length; k += LANES)
                store_f32(wide + r * SLICE + k, NAME(load)(x + r * inputs + from + k));
        NAME(Chains) waiting = {.length = length, .shared = rows->shared};
        const int64_t together = rows->shared ? rows->count : 1;
        for (int64_t r = 0; r < rows->count; r += together)
            for (int64_t i = 0; i < rows->of[r]->count; i++) {
                const AdapterPart *part = rows->of[r]->parts + i;
                for (int64_t c = 0; c < part->rank; c += CHAIN_COLUMNS)
                    for (int64_t t = r; t < r + together; t++)
                        NAME(add_chain)(&waiting, (const TYPE *)part->a + c * inputs + from * CHAIN_COLUMNS, wide + t * SLICE,
                                        inner + (t * MAX_PARTS + i) * MAX_RANK + c);
            }
        NAME(run_waiting)(&waiting);
    }
}

/* extra[rows, width] = b times that; columns that the adapter leaves alone are zeros. */
static void NAME(times_b)(const NAME(Rows) *rows, const float *inner, float *extra, int64_t width) {
    const int64_t together = rows->shared ? rows->count : 1;
    memset(extra, 0, rows->count * width * sizeof(float));
    for (int64_t r = 0; r < rows->count; r += together)
        for (int64_t i = 0; i < rows->of[r]->count; i++) {
            const AdapterPart *part = rows->of[r]->parts + i;
            NAME(Chains) waiting = {.length = part->rank, .shared = rows->shared};
            for (int64_t c = 0; c < part->outputs; c += CHAIN_COLUMNS)
                for (int64_t t = r; t < r + together; t++)
                    NAME(add_chain)(&waiting, (const TYPE *)part->b + c * part->rank, inner + (t * MAX_PARTS + i) * MAX_RANK,
                                    extra + t * width + part->first + c);
            NAME(run_waiting)(&waiting);
        }
}

/* Rows that have adapters, from `first` to `end`: all of a step's, or those that are sampled. */
INLINE int64_t NAME(first_row)(const Work *work, const Segment *g) { return work->sampled ? g->sampled_first : g->first; }
INLINE int64_t NAME(end_row)(const Work *work, const Segment *g) { return work->sampled ? g->sampled_end : g->end; }

INLINE int64_t NAME(extra_width)(const Matrix *m) { return m->gated ? 2 * m->outputs : m->outputs; }

static void NAME(adapt_items)(const Work *work, int64_t low, int64_t high, char *room) {
    _Alignas(64) float inner[BESIDE * MAX_PARTS * MAX_RANK];
    const Product *p = &work->product;
    const Segment *g = work->step->segments, *last = g + work->step->num_segments - 1;
    int64_t first = NAME(first_row)(work, g), row = first + low * BESIDE, end = first + high * BESIDE;
    int64_t width = NAME(extra_width)(p->matrix), inputs = p->matrix->inputs;
    float *extra = room ? (float *)room : work->out;
    if (end > NAME(end_row)(work, last)) end = NAME(end_row)(work, last);
    for (int64_t count; row < end; row += count) {
        NAME(Rows) rows = {.count = end - row < BESIDE ? end - row : BESIDE};
        count = rows.count;
        while (NAME(end_row)(work, g) <= row) g++;
        rows.shared = count == BESIDE && NAME(end_row)(work, g) >= row + count;
        for (int64_t r = 0; r < count; r++) {
            while (NAME(end_row)(work, g) <= row + r) g++;
            rows.of[r] = NAME(matrix_of)(work, g);
        }
        NAME(times_a)(&rows, (const TYPE *)p->x + row * inputs, inputs, inner);
        NAME(times_b)(&rows, inner, extra + (row - first) * width, width);
    }
}

static void NAME(take_adapted)(const Work *work, int64_t low, int64_t high, const char *room) {
    const Segment *g = work->step->segments;
    int64_t rows = NAME(end_row)(work, g + work->step->num_segments - 1) - NAME(first_row)(work, g);
    int64_t width = NAME(extra_width)(work->product.matrix), from = low * BESIDE, end = high * BESIDE < rows ? high * BESIDE : rows;
    memcpy((float *)work->out + from * width, (const float *)room + from * width, (end - from) * width * sizeof(float));
}

/* extra[rows from the first adapted one, sums of p's matrix] of every row that has an adapter. */
static void NAME(adapt)(const Step *s, const Product *p, int64_t layer, int64_t place, int64_t sampled, float *extra) {
    Work work = {.compute = NAME(adapt_items), .take = NAME(take_adapted), .step = s, .product = *p, .layer = layer,
                 .place = place, .sampled = sampled, .out = extra, .own_items = MAX_ITEMS, .lent_items = 1,
                 .num_threads = s->num_threads};
    const Segment *g = s->segments;
    int64_t rows = NAME(end_row)(&work, g + s->num_segments - 1) - NAME(first_row)(&work, g);
    work.items = (rows + BESIDE - 1) / BESIDE;
    run(s->team, &work);
}
#undef CHAIN_VECTORS
#undef CHAIN_AHEAD
#undef BESIDE
#undef SLICE
