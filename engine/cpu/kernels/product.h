/* Products of rows with a matrix in panels, written once for both element types (TYPE, NAME, PACKED).

   panels [outputs / PANEL][words][PANEL]   32-bit words: a float, or two bf16 values that are neighbours
                                            along the summed dimension; the last panel is filled up with zeros

   Every output is one chain of `words` steps, first word to last, whatever the number of rows, wherever
   its row stands among them and whichever thread computes it: equal rows give equal bits. So are sums of bytes, a chain of
   groups: quantized.h. */

/* LANES times c += x * b for one word of a row; without bf16 instructions x is widened beforehand. */
INLINE vf NAME(step)(vf c, const uint32_t *x, vu b) {
#if PACKED == 1
    return fused(c, splat_word(x[0]), (vf)b);
#elif defined(__AVX512BF16__)
    return (vf)_mm512_dpbf16_ps((__m512)c, (__m512bh)b, (__m512bh)_mm512_set1_epi32((int)x[0]));
#else
    c = fused(c, splat_word(x[0]), (vf)(b << 16));
    return fused(c, splat_word(x[1]), (vf)(b & UPPER_HALF));
#endif
}

#if PACKED == 2 && !defined(__AVX512BF16__)
#define X_WORDS 2 /* words of the given row for one word of the panel */

INLINE void NAME(widen_row)(const uint32_t *x, uint32_t *wide, int64_t words) {
    for (int64_t k = 0; k < words; k++) {
        wide[2 * k] = x[k] << 16;
        wide[2 * k + 1] = x[k] & 0xffff0000u;
    }
}
#else
#define X_WORDS 1
#endif

/* A row of `inputs` elements as bytes, the last group filled up with zeros. */
static void NAME(quantize_row)(const TYPE *x, int64_t inputs, uint32_t *words, Scaled *scaled) {
    for (int64_t k = 0; k < inputs; k += SHARE, words += SHARE_WORDS * ROW_WORDS, scaled++) {
        _Alignas(64) TYPE last[SHARE] = {0};
        vf values[SHARE / LANES];
        const TYPE *from = x + k;
        if (inputs - k < SHARE) from = memcpy(last, from, (inputs - k) * sizeof(TYPE));
        for (int i = 0; i < SHARE / LANES; i++) values[i] = NAME(load)(from + i * LANES);
        quantize_group(values, words, scaled);
    }
}

/* Where `wide` has the rows of a product of bytes, from `first` on. */
INLINE ByteRows NAME(bytes_of)(const Product *p, int64_t first) {
    int64_t groups = (p->matrix->inputs + SHARE - 1) / SHARE, pitch = groups * SHARE_WORDS * ROW_WORDS;
    const uint32_t *words = (const uint32_t *)p->wide;
    const Scaled *scaled = (const Scaled *)(words + p->rows * pitch);
    ByteRows rows = {words + first * pitch, scaled + first * groups, pitch, groups};
    return rows;
}

/* Every row as other kinds of products want it, in `wide`. */
INLINE void NAME(prepare_row)(const Product *p, int64_t row) {
    const Matrix *m = p->matrix;
    const TYPE *x = (const TYPE *)p->x + row * m->inputs;
    if (m->quantized) {
        ByteRows to = NAME(bytes_of)(p, row);
        NAME(quantize_row)(x, m->inputs, (uint32_t *)to.words, (Scaled *)to.scaled);
        return;
    }
#if X_WORDS == 2
    NAME(widen_row)((const uint32_t *)x, (uint32_t *)p->wide + row * m->words * 2, m->words);
#endif
}

/* sums[rows, PANEL] of `rows` rows (a constant) with one panel. The first rows that read it ask for
   its words early: `ahead`, a constant, says how (ahead.h). */
INLINE void NAME(panel_rows)(const int rows, const int ahead, const uint32_t *x, const uint32_t *panel,
                             int64_t words, float *sums) {
    vf total[TILE_ROWS][2];
#pragma GCC unroll 14
    for (int r = 0; r < rows; r++) total[r][0] = total[r][1] = (vf){0};
    for (int64_t k = 0; k < words; k++) {
        const uint32_t *column = panel + k * PANEL;
        vu first = *(const vu_any *)column, second = *(const vu_any *)(column + LANES);
        if (ahead) ask_for_panel(ahead, column);
#pragma GCC unroll 14
        for (int r = 0; r < rows; r++) {
            const uint32_t *word = x + (r * words + k) * X_WORDS;
            total[r][0] = NAME(step)(total[r][0], word, first);
            total[r][1] = NAME(step)(total[r][1], word, second);
        }
    }
#pragma GCC unroll 14
    for (int r = 0; r < rows; r++) {
        store_f32(sums + r * PANEL, total[r][0]);
        store_f32(sums + r * PANEL + LANES, total[r][1]);
    }
}

static void NAME(panel_tile)(int64_t rows, int ahead, const uint32_t *x, const uint32_t *panel,
                             int64_t words, float *sums) {
#define CASE(R)                                                                                      \
    case R:                                                                                          \
        if (R > FEW_ROWS && ahead == SECOND_CACHE) NAME(panel_rows)(R, SECOND_CACHE, x, panel, words, sums); \
        else if (ahead || R < TILE_ROWS / 2) NAME(panel_rows)(R, AS_EVERYWHERE, x, panel, words, sums); \
        else NAME(panel_rows)(R, 0, x, panel, words, sums);                                          \
        return;
    switch (rows) {
        CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6)
#if TILE_ROWS > 6
        CASE(7) CASE(8) CASE(9) CASE(10) CASE(11) CASE(12) CASE(13) CASE(14)
#endif
    }
#undef CASE
}

/* Columns of the output that a panel makes: a gated one has a gate in its first half, and what passes
   it in its second. */
INLINE int64_t NAME(panel_outputs)(const Matrix *m) { return m->gated ? LANES : PANEL; }

/* The biases of one panel's columns, zeros behind the last. */
static void NAME(panel_bias)(const Matrix *m, int64_t column, int64_t count, TYPE *bias) {
    const TYPE *all = m->bias;
    memcpy(bias, all + column, (m->gated ? LANES : count) * sizeof(TYPE));
    if (m->gated) memcpy(bias + LANES, all + m->outputs + column, LANES * sizeof(TYPE));
}

/* What an adapter adds to a row's sums with one panel; the second half of a last panel that has none is left alone. */
INLINE void NAME(add_extra)(const Product *p, int64_t row, int64_t column, vf *one, vf *two) {
    const Matrix *m = p->matrix;
    if (!p->extra || row < p->extra_from) return;
    const float *extra = p->extra + (row - p->extra_from) * (m->gated ? 2 * m->outputs : m->outputs) + column;
    int64_t second = m->gated ? m->outputs : LANES;
    *one += load_f32(extra);
    if (m->gated || column + LANES < m->outputs) *two += load_f32(extra + second);
}

#define KEEPS 2 /* what `adds` is for who computes what another will add */

INLINE void NAME(put)(TYPE *out, vf x, int64_t adds) {
    if (adds == KEEPS) NAME(keep)(out, NAME(rounded)(x));
    else NAME(store)(out, adds ? NAME(load)(out) + NAME(rounded)(x) : x);
}

/* Sums of some rows with one panel, and which of them have become their part of the output. */
typedef struct {
    _Alignas(64) float sums[MATRIX_ROWS * PANEL];
    int64_t rows, first, index, done;
} NAME(Part);

/* Bias, rounding, gate or sum: the next rows of a part become output, up to row `until`. */
INLINE void NAME(finish)(const Product *p, NAME(Part) *part, int64_t until) {
    const Matrix *m = p->matrix;
    int64_t column = part->index * NAME(panel_outputs)(m), count = m->outputs - column;
    TYPE *out = (TYPE *)p->out + (part->first + part->done) * m->outputs + column, bias[PANEL] = {0}, row[PANEL];
    const float *sums = part->sums + part->done * PANEL;
    if (count > PANEL) count = PANEL;
    if (until > part->rows) until = part->rows;
    if (m->bias && part->done < until) NAME(panel_bias)(m, column, count, bias);
    for (; part->done < until; part->done++, sums += PANEL, out += m->outputs) {
        vf one = load_f32(sums), two = load_f32(sums + LANES);
        if (m->bias) {
            one += NAME(load)(bias);
            two += NAME(load)(bias + LANES);
        }
        NAME(add_extra)(p, part->first + part->done, column, &one, &two);
        if (m->gated)
            NAME(store)(out, NAME(silu)(NAME(rounded)(one)) * NAME(rounded)(two));
        else if (count == PANEL) {
            NAME(put)(out, one, p->adds);
            NAME(put)(out + LANES, two, p->adds);
        } else {
            memcpy(row, out, count * sizeof(TYPE));
            NAME(put)(row, one, p->adds);
            NAME(put)(row + LANES, two, p->adds);
            memcpy(out, row, count * sizeof(TYPE));
        }
    }
}

static void NAME(finish_all)(const Product *p, NAME(Part) *part) { NAME(finish)(p, part, part->rows); }

#if PACKED == 2 && defined(__AMX_BF16__)
/* Few rows wait for the panel, so they ask for its words early; many ask for the next panel's, each block of rows for
   its share. Either way the words are there before they are needed, and nothing is asked for twice. */
INLINE void ask_ahead(const int few, const uint32_t *column, int64_t words, int64_t block, int64_t blocks) {
    if (few) {
#pragma GCC unroll 32
        for (int i = 0; i < 2 * TILE_WORDS; i++) __builtin_prefetch(column + AHEAD_WORDS + i * LANES);
        return;
    }
    int64_t low = block * 2 * TILE_WORDS / blocks, high = (block + 1) * 2 * TILE_WORDS / blocks;
    for (int64_t i = low; i < high; i++) __builtin_prefetch(column + words * PANEL + i * LANES, 0, 2);
}

/* While the tiles multiply, the vector units finish the part before. */
INLINE void multiply_block(const int upper_only, const Product *p, const uint32_t *x, int64_t block,
                           int64_t blocks, Part_bf16 *part, Part_bf16 *before) {
    int64_t words = p->matrix->words, steps = words / TILE_WORDS;
    int64_t each = (before->rows + steps - 1) / steps;
    const uint32_t *panel = p->matrix->panels + part->index * words * PANEL;
    if (shaped_for != part->rows) shape_tiles(part->rows);
    zero_tiles(upper_only);
    for (int64_t k = 0; k < words; k += TILE_WORDS) {
        ask_ahead(upper_only && blocks == 1, panel + k * PANEL, words, block, blocks);
        add_tiles(upper_only, x + k, words, panel + k * PANEL);
        finish_bf16(p, before, before->done + each);
    }
    store_tiles(upper_only, part->sums);
    part->done = 0;
}

/* As panel_block, in tiles; what is not finished stays in parts[0]. */
static void tile_block(const Product *p, const uint32_t *x, int64_t first, int64_t rows, int64_t index,
                       Part_bf16 *parts[2]) {
    int64_t blocks = (rows + MATRIX_ROWS - 1) / MATRIX_ROWS;
    for (int64_t i = 0; i < blocks; i++) {
        Part_bf16 *before = parts[0], *part = parts[1];
        int64_t low = i * MATRIX_ROWS;
        part->rows = rows - low < MATRIX_ROWS ? rows - low : MATRIX_ROWS;
        part->first = first + low;
        part->index = index;
        const uint32_t *at = x + part->first * p->matrix->words;
        if (part->rows <= 16) multiply_block(1, p, at, i, blocks, part, before);
        else multiply_block(0, p, at, i, blocks, part, before);
        parts[0] = part;
        parts[1] = before;
    }
}
#endif

/* As panel_block, in bytes. */
static void NAME(byte_block)(const Product *p, int64_t first, int64_t rows, int64_t index, NAME(Part) *part) {
    const Matrix *m = p->matrix;
    const uint32_t *panel = m->panels + index * m->words * PANEL;
    int in_tiles = uses_byte_tiles(rows);
    int64_t most = in_tiles ? MATRIX_ROWS : BYTE_ROWS, tiles = (rows + most - 1) / most;
    for (int64_t i = 0; i < tiles; i++) {
        int64_t low = first + rows * i / tiles, high = first + rows * (i + 1) / tiles;
        ByteRows x = NAME(bytes_of)(p, low);
        byte_sums(&x, high - low, in_tiles, i == 0, panel, part->sums);
        part->rows = high - low;
        part->first = low;
        part->index = index;
        part->done = 0;
        NAME(finish_all)(p, part);
    }
}

/* All rows of one block with one panel. */
static void NAME(panel_block)(const Product *p, const uint32_t *x, int64_t first, int64_t rows,
                              int64_t index, NAME(Part) *parts[2]) {
    int64_t words = p->matrix->words, tiles = (rows + TILE_ROWS - 1) / TILE_ROWS;
    const uint32_t *panel = p->matrix->panels + index * words * PANEL;
    NAME(Part) *part = parts[0];
    if (p->matrix->quantized) {
        NAME(byte_block)(p, first, rows, index, part);
        return;
    }
#if PACKED == 2 && defined(__AMX_BF16__)
    if (uses_tiles(words)) {
        tile_block(p, x, first, rows, index, parts);
        return;
    }
#endif
    for (int64_t i = 0; i < tiles; i++) {
        int64_t low = first + rows * i / tiles, high = first + rows * (i + 1) / tiles;
        NAME(panel_tile)(high - low, i == 0 ? how_to_ask(high - low, tiles) : 0, x + low * words * X_WORDS, panel, words, part->sums);
        part->rows = high - low;
        part->first = low;
        part->index = index;
        part->done = 0;
        NAME(finish_all)(p, part);
    }
}

/* Rows in blocks that stay in the cache while the panels pass by: an item is one panel for one block of rows. */
INLINE int64_t NAME(block_rows)(const Matrix *m) {
    int64_t row_bytes = m->quantized ? m->inputs * ROW_WORDS : m->words * X_WORDS * 4;
    int64_t block = CACHED_BYTES / row_bytes / MATRIX_ROWS * MATRIX_ROWS;
    return block < MATRIX_ROWS ? MATRIX_ROWS : block;
}

INLINE int64_t NAME(num_panels)(const Matrix *m) {
    int64_t width = NAME(panel_outputs)(m);
    return (m->outputs + width - 1) / width;
}

static void NAME(multiply_items)(const Work *work, int64_t low, int64_t high, char *room) {
    Product p = work->product;
    const uint32_t *x = X_WORDS == 2 ? (const uint32_t *)p.wide : p.x;
    int64_t block = NAME(block_rows)(p.matrix), panels = NAME(num_panels)(p.matrix);
    NAME(Part) parts_room[2], *parts[2] = {parts_room, parts_room + 1};
    parts_room[0].rows = parts_room[0].first = parts_room[0].index = parts_room[0].done = 0;
    if (room) {
        p.out = room;
        if (p.adds) p.adds = KEEPS;
    }
    for (int64_t i = low; i < high; i++) {
        int64_t first = i / panels * block, rows = p.rows - first < block ? p.rows - first : block;
        NAME(panel_block)(&p, x, first, rows, i % panels, parts);
    }
    NAME(finish_all)(&p, parts[0]);
    release_tiles();
}

/* Columns of some rows, from a room to the output. */
static void NAME(take_columns)(const Product *p, int64_t row, int64_t column, int64_t count, const TYPE *room) {
    int64_t at = row * p->matrix->outputs + column, i = 0;
    TYPE *out = (TYPE *)p->out + at, sum[LANES] = {0}, added[LANES] = {0};
    if (!p->adds) {
        memcpy(out, room + at, count * sizeof(TYPE));
        return;
    }
    for (room += at; i + LANES <= count; i += LANES) NAME(put)(out + i, NAME(load)(room + i), 1);
    memcpy(sum, out + i, (count - i) * sizeof(TYPE));
    memcpy(added, room + i, (count - i) * sizeof(TYPE));
    NAME(put)(sum, NAME(load)(added), 1);
    memcpy(out + i, sum, (count - i) * sizeof(TYPE));
}

static void NAME(take_products)(const Work *work, int64_t low, int64_t high, const char *room) {
    const Product *p = &work->product;
    int64_t block = NAME(block_rows)(p->matrix), panels = NAME(num_panels)(p->matrix);
    int64_t width = NAME(panel_outputs)(p->matrix);
    for (int64_t next; low < high; low = next) {
        int64_t first = low / panels * block, end = first + block < p->rows ? first + block : p->rows;
        next = (low / panels + 1) * panels < high ? (low / panels + 1) * panels : high;
        int64_t column = low % panels * width, until = column + (next - low) * width;
        if (until > p->matrix->outputs) until = p->matrix->outputs;
        for (int64_t row = first; row < end; row++)
            NAME(take_columns)(p, row, column, until - column, (const TYPE *)room);
    }
}

/* out[rows, outputs] = x[rows, words] * matrix + bias, added to what is there if that is asked for; gated: silu(the
   first half of that) * the second half, of 2 * outputs columns, where outputs is a multiple of LANES. `wide` is
   scratch for x as floats, where bf16 is widened, or as bytes. */
void NAME(product)(const Product *p) {
    int64_t block = NAME(block_rows)(p->matrix);
    if (X_WORDS == 2 || p->matrix->quantized) {
#pragma omp parallel for if (p->num_threads > 1) num_threads(p->num_threads)
        for (int64_t r = 0; r < p->rows; r++) NAME(prepare_row)(p, r);
    }
    const Work work = {.compute = NAME(multiply_items), .take = NAME(take_products), .product = *p,
                       .items = (p->rows + block - 1) / block * NAME(num_panels)(p->matrix), .own_items = MAX_ITEMS,
                       .lent_items = 1 + 32 / (p->rows + 3), .num_threads = p->num_threads};
    run(p->team, &work);
}
#undef X_WORDS
#undef KEEPS
