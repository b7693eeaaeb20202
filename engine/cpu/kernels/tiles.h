/* Products of bf16 in AMX tiles. Owns permission, shape and use of the tile registers; knows no threads.

     rows 0-15  [4] x  ->  [0] [1]        [4], [5]: 16 rows of 16 words of x
     rows 16-31 [5] x  ->  [2] [3]        [6], [7]: 16 words of the two halves of a panel
                           [6] [7]        [0]-[3]: sums

   A row of a tile is summed in the same order however many rows the tile has. That order differs from
   vdpbf16ps's, so a processor with tiles uses them for one row as well. */
#if defined(__AMX_BF16__) && defined(__AVX512F__)
#include <sys/syscall.h>
#include <unistd.h>

#define TILE_WORDS 16
#define REQUEST_PERMISSION 0x1023 /* ARCH_REQ_XCOMP_PERM: the kernel keeps the registers from who did not ask */
#define TILE_DATA 18

static int tiles_permitted;
static _Thread_local int64_t shaped_for; /* what this thread's tiles are shaped for; 0 for nothing */

static void permit_tiles(void) {
    tiles_permitted = syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0;
}

/* Decided by the matrix alone: every number of rows goes the same way. */
INLINE int uses_tiles(int64_t words) { return tiles_permitted && words % TILE_WORDS == 0; }

typedef struct {
    uint8_t palette, start, reserved[14];
    uint16_t width[16];
    uint8_t rows[16];
} Shape;

INLINE void apply_shape(const Shape *shape, int64_t name) {
    __asm__ volatile("" : : "m"(*shape)); /* GCC 12 thinks that the instruction reads only eight bytes */
    _tile_loadconfig(shape);
    shaped_for = name;
}

static void shape_tiles(int64_t rows) {
    Shape shape = {.palette = 1};
    uint8_t upper = (uint8_t)(rows < 16 ? rows : 16), lower = (uint8_t)(rows - upper);
    for (int i = 0; i < 8; i++) {
        shape.width[i] = 64;
        shape.rows[i] = 16;
    }
    shape.rows[0] = shape.rows[1] = shape.rows[4] = upper;
    if (lower) shape.rows[2] = shape.rows[3] = shape.rows[5] = lower;
    apply_shape(&shape, rows);
}

INLINE void release_tiles(void) {
    if (tiles_permitted && shaped_for) {
        _tile_release();
        shaped_for = 0;
    }
}

INLINE void zero_tiles(const int upper_only) {
    _tile_zero(0);
    _tile_zero(1);
    if (upper_only) return;
    _tile_zero(2);
    _tile_zero(3);
}

/* Adds the products of 16 words of up to 32 rows, the first at x, with 16 words of a panel, the first at `column`. */
INLINE void add_tiles(const int upper_only, const uint32_t *x, int64_t words, const uint32_t *column) {
    const int64_t stride = words * 4, wide = PANEL * 4;
    _tile_loadd(4, x, stride);
    _tile_loadd(6, column, wide);
    _tile_loadd(7, column + LANES, wide);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    if (upper_only) return;
    _tile_loadd(5, x + 16 * words, stride);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
}

INLINE void store_tiles(const int upper_only, float *sums) {
    const int64_t wide = PANEL * 4;
    _tile_stored(0, sums, wide);
    _tile_stored(1, sums + LANES, wide);
    if (upper_only) return;
    _tile_stored(2, sums + 16 * PANEL, wide);
    _tile_stored(3, sums + 16 * PANEL + LANES, wide);
}

/* Attention: [0]-[3] sums of up to 16 rows; [4] rows of 16 words of queries, [5] rows of 8 words of weights;
   [6] 16 words of 16 keys, [7] 8 words (16 positions) of values. */
static void shape_attention(int64_t rows) {
    if (shaped_for == -rows) return;
    Shape shape = {.palette = 1};
    for (int i = 0; i < 8; i++) {
        shape.width[i] = 64;
        shape.rows[i] = (uint8_t)rows;
    }
    shape.width[5] = 32;
    shape.rows[6] = 16;
    shape.rows[7] = 8;
    apply_shape(&shape, -rows);
}

/* scores[rows, KEY_TILE] = queries[rows, words] * keys of four groups; rows are filled up to 16 where there are more. */
static void score_tiles(int64_t rows, const uint32_t *queries, int64_t words, const uint32_t *const *keys,
                        int64_t stride, float *scores) {
    shape_attention(rows < 16 ? rows : 16);
    for (int64_t r = 0; r < rows; r += 16, queries += 16 * words, scores += 16 * KEY_TILE) {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
        for (int64_t k = 0; k < words; k += TILE_WORDS) {
            _tile_loadd(4, queries + k, words * 4);
#define GROUP(I)                                                                                     \
    _tile_loadd(6, keys[I] + k * stride, stride * 4);                                                \
    _tile_dpbf16ps(I, 4, 6);
            GROUP(0) GROUP(1) GROUP(2) GROUP(3)
#undef GROUP
        }
        _tile_stored(0, scores, KEY_TILE * 4);
        _tile_stored(1, scores + 16, KEY_TILE * 4);
        _tile_stored(2, scores + 32, KEY_TILE * 4);
        _tile_stored(3, scores + 48, KEY_TILE * 4);
    }
}

/* outputs[rows, dim] += weights[rows, KEY_TILE] * values of four groups; 32 columns at a time. */
static void mix_tiles(int64_t rows, const uint32_t *weights, const uint32_t *const *values, int64_t dim,
                      float *outputs) {
    shape_attention(rows < 16 ? rows : 16);
    for (int64_t r = 0; r < rows; r += 16, weights += 16 * KEY_TILE / 2, outputs += 16 * dim)
        for (int64_t n = 0; n < dim; n += 32) {
            _tile_loadd(0, outputs + n, dim * 4);
            _tile_loadd(1, outputs + n + 16, dim * 4);
            for (int64_t g = 0; g < 4; g++) {
                _tile_loadd(5, weights + g * 8, KEY_TILE / 2 * 4);
                _tile_loadd(7, values[g] + n, dim * 4);
                _tile_dpbf16ps(0, 5, 7);
                _tile_loadd(7, values[g] + n + 16, dim * 4);
                _tile_dpbf16ps(1, 5, 7);
            }
            _tile_stored(0, outputs + n, dim * 4);
            _tile_stored(1, outputs + n + 16, dim * 4);
        }
}
#else
static void permit_tiles(void) {}
INLINE void release_tiles(void) {}
#endif
