/* Sums of bytes: rows and panels of 8-bit integers, with a scale for each group of neighbours. Knows no element type, no threads.

     panel  [groups][SHARE_WORDS words, then a row of scales][PANEL]   a word is 4 weights, each + 128; scales are floats
     row    [words][ROW_WORDS]   4 signed bytes; where nothing multiplies bytes, two words of 16-bit numbers: (0, 2), (1, 3)
            [groups] Scaled

   A group's sum is an integer below 2^24, so that its order does not matter and every kind of processor has the same. Groups
   are added as floats, first to last: sum += integer * the weights' scale * the row's, every operation rounded by itself,
   since not every processor has fused ones. The last group is filled up with zeros. */
#define SHARE_WORDS 16
#define SHARE (4 * SHARE_WORDS) /* as engine/cpu/quantized_sizes.py has it as GROUP */

typedef struct {
    float scale;
    int32_t offset; /* -128 times the group's sum: what the weights' + 128 adds too much */
} Scaled;

INLINE vi splat_integer(int32_t x) { return x - (vi){0}; }

#if defined(__AVX512VNNI__)
#define ROW_WORDS 1
#define BYTE_ROWS 14 /* rows of the inner block: two sums of integers each */

/* c + the products of 4 bytes in each lane. GCC 12 keeps the sums in memory with the intrinsic. */
INLINE vi add_bytes(vi c, const uint32_t *x, vu w) {
    __asm__("vpdpbusd %2, %1, %0" : "+v"(c) : "v"(w), "v"(splat_integer((int32_t)x[0])));
    return c;
}
#elif defined(__AVXVNNI__) && LANES == 8
#define ROW_WORDS 1
#define BYTE_ROWS 6

INLINE vi add_bytes(vi c, const uint32_t *x, vu w) {
    __asm__("{vex} vpdpbusd %2, %1, %0" : "+x"(c) : "x"(w), "x"(splat_integer((int32_t)x[0])));
    return c;
}
#else
#define ROW_WORDS 2
#define BYTE_ROWS (LANES == 16 ? 12 : 4)

/* c + the products of two 16-bit numbers in each lane. */
INLINE vi add_pairs(vi c, uint32_t x, vu w) {
#if defined(__AVX512BW__)
    return c + (vi)_mm512_madd_epi16((__m512i)w, _mm512_set1_epi32((int)x));
#elif defined(__AVX2__) && LANES == 8
    return c + (vi)_mm256_madd_epi16((__m256i)w, _mm256_set1_epi32((int)x));
#else
    return c + (vi)(w & 0xffff) * (int16_t)x + (vi)(w >> 16) * (int16_t)(x >> 16);
#endif
}

INLINE vi add_bytes(vi c, const uint32_t *x, vu w) {
    c = add_pairs(c, x[0], w & 0x00ff00ff);
    return add_pairs(c, x[1], (w >> 8) & 0x00ff00ff);
}
#endif

/* ---- rows as bytes */

INLINE vi larger(vi a, vi b) {
#if defined(__AVX512F__)
    return (vi)_mm512_max_epi32((__m512i)a, (__m512i)b);
#elif defined(__AVX2__)
    return (vi)_mm256_max_epi32((__m256i)a, (__m256i)b);
#else
    vi mask = a > b;
    return (a & mask) | (b & ~mask);
#endif
}

/* LANES integers from -127 to 127 as words of a row. */
INLINE void store_bytes(uint32_t *to, vi q) {
#if ROW_WORDS == 2
    vu low = (vu)q & 0xffff;
#if LANES == 16
    vu upper = shuffle2((vu)q, (vu)q, (vu){2, 3, 2, 3, 6, 7, 6, 7, 10, 11, 10, 11, 14, 15, 14, 15});
    vu pairs = shuffle2(low | (upper << 16), low | (upper << 16), (vu){0, 1, 4, 5, 8, 9, 12, 13, 0, 1, 4, 5, 8, 9, 12, 13});
#else
    vu upper = shuffle2((vu)q, (vu)q, (vu){2, 3, 2, 3, 6, 7, 6, 7});
    vu pairs = shuffle2(low | (upper << 16), low | (upper << 16), (vu){0, 1, 4, 5, 0, 1, 4, 5});
#endif
    memcpy(to, &pairs, BYTES / 2);
#elif LANES == 16
    _mm_storeu_si128((__m128i *)to, _mm512_cvtepi32_epi8((__m512i)q));
#else
    typedef int8_t vb __attribute__((vector_size(LANES)));
    vb bytes = __builtin_convertvector(q, vb);
    memcpy(to, &bytes, LANES);
#endif
}

#define INTEGER_BITS 12582912.0f /* 1.5 * 2^23: a float that is added to it leaves its nearest integer in the low bits */
#define NOT_FINITE 0x7f800000
#define SMALLEST 0x1p-100f /* of a group's largest value: what is less is taken for zero */

/* A group to words and their scale. What is no finite number makes the whole group NaN. */
INLINE void quantize_group(const vf *values, uint32_t *words, Scaled *scaled) {
    const int count = SHARE / LANES;
    vi top = {0};
    vu total = {0};
    int32_t bits = 0;
    uint32_t sum = 0;
    float largest, factor = 0.0f;
    for (int i = 0; i < count; i++) top = larger(top, (vi)((vu)values[i] & 0x7fffffff));
    for (int i = 0; i < LANES; i++) bits = top[i] > bits ? top[i] : bits;
    memcpy(&largest, &bits, 4);
    scaled->scale = bits >= NOT_FINITE ? NAN : 0.0f;
    if (bits < NOT_FINITE && largest >= SMALLEST) {
        factor = 127.0f / largest;
        scaled->scale = largest / 127.0f;
    }
    for (int i = 0; i < count; i++) {
        vi q = (vi)(values[i] * factor + INTEGER_BITS) - (vi)splat(INTEGER_BITS);
        total += (vu)q;
        store_bytes(words + i * (LANES / 4 * ROW_WORDS), q);
    }
    for (int i = 0; i < LANES; i++) sum += total[i];
    scaled->offset = (int32_t)(0u - 128u * sum);
}

/* ---- products */

/* Rows as bytes, `pitch` words from one to the next, and their scales. */
typedef struct {
    const uint32_t *words;
    const Scaled *scaled;
    int64_t pitch, groups;
} ByteRows;

INLINE void add_group(float *sum, vi integers, vf weight_scale, vf row_scale) {
    vf product = __builtin_convertvector(integers, vf) * weight_scale;
    store_f32(sum, load_f32(sum) + product * row_scale);
}

/* Adds group g to the sums of `rows` rows (a constant) with one panel. */
INLINE void byte_group(const int rows, const int ahead, const ByteRows *x, int64_t g, const uint32_t *panel, float *sums) {
    const uint32_t *column = panel + g * (SHARE_WORDS + 1) * PANEL, *at = x->words + g * SHARE_WORDS * ROW_WORDS;
    vi total[BYTE_ROWS][2];
#pragma GCC unroll 14
    for (int r = 0; r < rows; r++) total[r][0] = total[r][1] = splat_integer(x->scaled[r * x->groups + g].offset);
    for (int64_t k = 0; k < SHARE_WORDS; k++, column += PANEL) {
        vu first = *(const vu_any *)column, second = *(const vu_any *)(column + LANES);
        if (ahead) ask_for_panel(AS_EVERYWHERE, column);
#pragma GCC unroll 14
        for (int r = 0; r < rows; r++) {
            const uint32_t *word = at + r * x->pitch + k * ROW_WORDS;
            total[r][0] = add_bytes(total[r][0], word, first);
            total[r][1] = add_bytes(total[r][1], word, second);
        }
    }
    vf first = load_f32((const float *)column), second = load_f32((const float *)column + LANES);
    if (ahead) ask_for_panel(AS_EVERYWHERE, column);
#pragma GCC unroll 14
    for (int r = 0; r < rows; r++) {
        vf scale = splat(x->scaled[r * x->groups + g].scale);
        add_group(sums + r * PANEL, total[r][0], first, scale);
        add_group(sums + r * PANEL + LANES, total[r][1], second, scale);
    }
}

INLINE void byte_rows(const int rows, const int ahead, const ByteRows *x, const uint32_t *panel, float *sums) {
    for (int64_t g = 0; g < x->groups; g++) byte_group(rows, ahead, x, g, panel, sums);
}

static void byte_tile(int64_t rows, int ahead, const ByteRows *x, const uint32_t *panel, float *sums) {
#define CASE(R)                                                                                      \
    case R:                                                                                          \
        if (ahead || R < BYTE_ROWS / 2) byte_rows(R, 1, x, panel, sums);                             \
        else byte_rows(R, 0, x, panel, sums);                                                        \
        return;
    switch (rows) {
        CASE(1) CASE(2) CASE(3) CASE(4)
#if BYTE_ROWS > 4
        CASE(5) CASE(6)
#endif
#if BYTE_ROWS > 6
        CASE(7) CASE(8) CASE(9) CASE(10) CASE(11) CASE(12)
#endif
#if BYTE_ROWS > 12
        CASE(13) CASE(14)
#endif
    }
#undef CASE
}

#if defined(__AMX_BF16__) && defined(__AMX_INT8__)
#define TILES_FROM 9 /* rows: fewer are as quick without */

/* integers[up to MATRIX_ROWS, PANEL] of one group, in tiles shaped as for products of bf16. */
INLINE void multiply_group(const int upper_only, const uint32_t *x, int64_t pitch, const uint32_t *column,
                           int32_t *integers) {
    const int64_t stride = pitch * 4, wide = PANEL * 4;
    zero_tiles(upper_only);
    _tile_loadd(4, x, stride);
    _tile_loadd(6, column, wide);
    _tile_loadd(7, column + LANES, wide);
    _tile_dpbsud(0, 4, 6);
    _tile_dpbsud(1, 4, 7);
    if (!upper_only) {
        _tile_loadd(5, x + 16 * pitch, stride);
        _tile_dpbsud(2, 5, 6);
        _tile_dpbsud(3, 5, 7);
    }
    store_tiles(upper_only, (float *)integers);
}

INLINE void add_integers(int64_t rows, const int32_t *integers, const ByteRows *x, int64_t g, const uint32_t *panel,
                         float *sums) {
    const float *scales = (const float *)(panel + (g * (SHARE_WORDS + 1) + SHARE_WORDS) * PANEL);
    vf first = load_f32(scales), second = load_f32(scales + LANES);
    for (int64_t r = 0; r < rows; r++, integers += PANEL, sums += PANEL) {
        Scaled own = x->scaled[r * x->groups + g];
        vi offset = splat_integer(own.offset);
        add_group(sums, (vi)*(const vu_any *)integers + offset, first, splat(own.scale));
        add_group(sums + LANES, (vi)*(const vu_any *)(integers + LANES) + offset, second, splat(own.scale));
    }
}

/* As byte_tile, for up to MATRIX_ROWS rows; the vector units add a group while the tiles multiply the next. */
INLINE void byte_matrix(const int upper_only, int64_t rows, const ByteRows *x, const uint32_t *panel, float *sums) {
    _Alignas(64) int32_t integers[2][MATRIX_ROWS * PANEL];
    if (shaped_for != rows) shape_tiles(rows);
    for (int64_t g = 0; g < x->groups; g++) {
        multiply_group(upper_only, x->words + g * SHARE_WORDS, x->pitch, panel + g * (SHARE_WORDS + 1) * PANEL,
                       integers[g & 1]);
        if (g) add_integers(rows, integers[(g - 1) & 1], x, g - 1, panel, sums);
    }
    add_integers(rows, integers[(x->groups - 1) & 1], x, x->groups - 1, panel, sums);
}
#endif

/* Whether so many rows are multiplied by tiles: the sums are the same. */
INLINE int uses_byte_tiles(int64_t rows) {
#ifdef TILES_FROM
    return tiles_permitted && rows >= TILES_FROM;
#else
    return 0;
#endif
}

/* sums[rows, PANEL] of rows with one panel: up to MATRIX_ROWS in tiles, else up to BYTE_ROWS. */
static void byte_sums(const ByteRows *x, int64_t rows, int in_tiles, int ahead, const uint32_t *panel, float *sums) {
    memset(sums, 0, rows * PANEL * 4);
#ifdef TILES_FROM
    if (in_tiles) {
        if (rows <= 16) byte_matrix(1, rows, x, panel, sums);
        else byte_matrix(0, rows, x, panel, sums);
        return;
    }
#endif
    byte_tile(rows, ahead, x, panel, sums);
}
