/* Products of rows with a matrix in panels, written once for both element types (TYPE, NAME, PACKED).

   panels [outputs / PANEL][words][PANEL]   32-bit words: a float, or two bf16 values that are neighbours
                                            along the summed dimension; the last panel is filled up with zeros

   Every output is one chain of `words` steps, first word to last, whatever the number of rows, wherever
   its row stands among them and whichever thread computes it: equal rows give equal bits. */

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

/* sums[rows, PANEL] of `rows` rows (a constant) with one panel. The first rows that read it ask for
   its words early. */
INLINE void NAME(panel_rows)(const int rows, const int ahead, const uint32_t *x, const uint32_t *panel,
                             int64_t words, float *sums) {
    vf total[TILE_ROWS][2];
#pragma GCC unroll 14
    for (int r = 0; r < rows; r++) total[r][0] = total[r][1] = (vf){0};
    for (int64_t k = 0; k < words; k++) {
        const uint32_t *column = panel + k * PANEL;
        vu first = *(const vu_any *)column, second = *(const vu_any *)(column + LANES);
        if (ahead) {
            __builtin_prefetch(column + AHEAD_WORDS);
            if (BYTES == 64) __builtin_prefetch(column + AHEAD_WORDS + LANES);
        }
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
        if (ahead || R < TILE_ROWS / 2) NAME(panel_rows)(R, 1, x, panel, words, sums);               \
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

INLINE void NAME(put)(TYPE *out, vf x, int64_t adds) {
    NAME(store)(out, adds ? NAME(load)(out) + NAME(rounded)(x) : x);
}

/* Bias, rounding, gate or sum: from the sums of some rows to their part of the output. */
static void NAME(finish)(const Product *p, const float *sums, int64_t rows, int64_t first, int64_t index) {
    const Matrix *m = p->matrix;
    int64_t column = index * NAME(panel_outputs)(m), left = m->outputs - column;
    int64_t count = left < PANEL ? left : PANEL;
    TYPE *out = (TYPE *)p->out + first * m->outputs + column, bias[PANEL] = {0}, row[PANEL];
    if (m->bias) NAME(panel_bias)(m, column, count, bias);
    for (int64_t r = 0; r < rows; r++, sums += PANEL, out += m->outputs) {
        vf one = load_f32(sums), two = load_f32(sums + LANES);
        if (m->bias) {
            one += NAME(load)(bias);
            two += NAME(load)(bias + LANES);
        }
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

/* All rows of one block with one panel. */
static void NAME(panel_block)(const Product *p, const uint32_t *x, int64_t first, int64_t rows,
                              int64_t index) {
    int64_t words = p->matrix->words;
    const uint32_t *panel = p->matrix->panels + index * words * PANEL;
    float sums[MATRIX_ROWS * PANEL];
#if PACKED == 2 && defined(__AMX_BF16__)
    if (uses_tiles(words)) {
        for (int64_t r = 0; r < rows; r += MATRIX_ROWS) {
            int64_t here = rows - r < MATRIX_ROWS ? rows - r : MATRIX_ROWS;
            matrix_tiles(here, x + (first + r) * words, panel, words, sums);
            NAME(finish)(p, sums, here, first + r, index);
        }
        return;
    }
#endif
    int64_t tiles = (rows + TILE_ROWS - 1) / TILE_ROWS;
    for (int64_t i = 0; i < tiles; i++) {
        int64_t low = first + rows * i / tiles, high = first + rows * (i + 1) / tiles;
        NAME(panel_tile)(high - low, i == 0, x + low * words * X_WORDS, panel, words, sums);
        NAME(finish)(p, sums, high - low, low, index);
    }
}

/* out[rows, outputs] = x[rows, words] * matrix + bias, added to what is there if that is asked for; gated: silu(the
   first half of that) * the second half, of 2 * outputs columns, where outputs is a multiple of LANES. `wide` is
   scratch for x as floats, where bf16 is widened. Rows go in blocks that stay in the cache while the panels pass by. */
void NAME(product)(const Product *p) {
    const uint32_t *x = p->x;
    int64_t words = p->matrix->words, width = NAME(panel_outputs)(p->matrix);
    int64_t block = CACHED_BYTES / (words * X_WORDS * 4) / MATRIX_ROWS * MATRIX_ROWS;
    if (block < MATRIX_ROWS) block = MATRIX_ROWS;
    int64_t blocks = (p->rows + block - 1) / block, panels = (p->matrix->outputs + width - 1) / width;
#pragma omp parallel if (p->num_threads > 1) num_threads(p->num_threads)
    {
#if X_WORDS == 2
#pragma omp for schedule(static)
        for (int64_t r = 0; r < p->rows; r++)
            NAME(widen_row)(x + r * words, (uint32_t *)p->wide + r * words * 2, words);
        x = (const uint32_t *)p->wide;
#endif
#pragma omp for collapse(2) schedule(static)
        for (int64_t b = 0; b < blocks; b++)
            for (int64_t i = 0; i < panels; i++) {
                int64_t first = b * block, rows = p->rows - first < block ? p->rows - first : block;
                NAME(panel_block)(p, x, first, rows, i);
            }
        release_tiles();
    }
}
#undef X_WORDS
