/* The decoder's operations, for float32 and bfloat16. Compiled on first use
   by engine/cpu/kernel_library.py with -march=native; reads and writes KV blocks in place. */
#define _GNU_SOURCE
#include <math.h>
#include <stddef.h>

#include "decoder.h"
#include "vector.h"
#include "ahead.h"
#include "tiles.h"
#include "lending.h"
#include "quantized.h"

INLINE char *aligned(char *place) { return (char *)(((uintptr_t)place + 63) & ~(uintptr_t)63); }

#define PASTE_(a, b) a##_##b
#define PASTE(a, b) PASTE_(a, b)

/* LANES times c += a * b, where a is one 32-bit word for all lanes: a float, or two bf16 values. */
INLINE vf multiply_add_f32(vf c, uint32_t a, vu b) { return fused(c, splat_word(a), (vf)b); }

INLINE vf multiply_add_bf16(vf c, uint32_t a, vu b) {
#ifdef __AVX512BF16__
    return (vf)_mm512_dpbf16_ps((__m512)c, (__m512bh)b, (__m512bh)_mm512_set1_epi32((int)a));
#else
    c = fused(c, splat_word(a << 16), (vf)(b << 16));
    return fused(c, splat_word(a & 0xffff0000u), (vf)(b & UPPER_HALF));
#endif
}

/* Which order of sums this library has, in a word; the same word means the same bits. */
const char *arithmetic(int64_t is_bf16) {
    (void)is_bf16;
#if defined(__AVX512F__)
#if defined(__AMX_BF16__)
    if (is_bf16 && tiles_permitted) return "amx_bf16";
#endif
#if defined(__AVX512BF16__)
    if (is_bf16) return "avx512_bf16";
#endif
    return "avx512";
#elif defined(__AVX2__) && defined(__FMA__)
    return "avx2";
#elif defined(__aarch64__)
    return "neon";
#else
    return "portable";
#endif
}

/* What must happen once in a process before the first product. */
void prepare(void) { permit_tiles(); }

/* Columns of a panel; and whether a product of bf16 needs scratch for its rows as floats. */
int64_t panel_columns(void) { return PANEL; }

int64_t widens(void) {
#ifdef __AVX512BF16__
    return 0;
#else
    return 1;
#endif
}

/* Rows of words, [outputs, words], to panels; see product.h. Gated: a panel's halves come from the two
   halves of the matrix, of a multiple of LANES rows each. */
void pack(const uint32_t *matrix, uint32_t *panels, int64_t outputs, int64_t words, int64_t gated,
          int64_t num_threads) {
    int64_t count = (outputs + PANEL - 1) / PANEL;
#pragma omp parallel for if (num_threads > 1) num_threads(num_threads)
    for (int64_t i = 0; i < count * 2; i++) {
        static const uint32_t zeros[LANES];
        int64_t first = gated ? i / 2 * LANES + i % 2 * (outputs / 2) : i * LANES, k = 0;
        uint32_t *to = panels + i / 2 * words * PANEL + i % 2 * LANES;
        for (; k + LANES <= words; k += LANES) {
            const char *rows[LANES];
            for (int64_t j = 0; j < LANES; j++)
                rows[j] = (const char *)(first + j < outputs ? matrix + (first + j) * words + k : zeros);
            transpose(rows, to + k * PANEL, PANEL);
        }
        for (; k < words; k++)
            for (int64_t j = 0; j < LANES; j++)
                to[k * PANEL + j] = first + j < outputs ? matrix[(first + j) * words + k] : 0;
    }
}

#define TYPE float
#define NAME(name) PASTE(name, f32)
#define PACKED 1 /* elements per 32-bit word */
#include "operations.h"
#include "attention.h"
#include "product.h"
#include "adapters.h"
#include "forward.h"
#undef TYPE
#undef NAME
#undef PACKED

#define TYPE bf16
#define NAME(name) PASTE(name, bf16)
#define PACKED 2
#include "operations.h"
#include "attention.h"
#include "product.h"
#include "adapters.h"
#include "forward.h"
