/* LANES floats at a time. Owns the portable vector type and its conversions; knows no tensors.

   GCC and Clang turn these into whatever the processor has (AVX-512, AVX2, NEON). Vectors wider than its
   registers go through memory (measured: 5 times slower), so LANES follows the processor. A bf16
   value is the upper half of a float; rounding is to nearest even.

   Compiled with -ffp-contract=off: what is fused is written as `fused`, so that no two copies of a
   loop round differently. */
#ifndef BATON_VECTOR_H
#define BATON_VECTOR_H

#include <stdint.h>
#include <string.h>
#ifdef __AVX2__
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#ifdef __AVX512F__
#define LANES 16
#define WIDE 4 /* vectors of a row in the inner block of attention's products: what the registers hold */
#define TILE_ROWS 14 /* rows of a panel product's inner block, two vectors each */
#else
#define LANES 8
#define WIDE 2
#define TILE_ROWS 6
#endif
#define BYTES (4 * LANES)
#define PANEL (2 * LANES)
typedef float vf __attribute__((vector_size(BYTES)));
typedef int32_t vi __attribute__((vector_size(BYTES)));
typedef uint32_t vu __attribute__((vector_size(BYTES)));
typedef uint16_t vh __attribute__((vector_size(BYTES / 2)));
typedef float vf_any __attribute__((vector_size(BYTES), aligned(2), may_alias));
typedef uint32_t vu_any __attribute__((vector_size(BYTES), aligned(2), may_alias));
typedef uint16_t vh_any __attribute__((vector_size(BYTES / 2), aligned(2), may_alias));
typedef uint16_t bf16;

#define INLINE static inline __attribute__((always_inline))

INLINE vf splat(float x) { return x - (vf){0}; }

INLINE vf splat_word(uint32_t word) {
    float x;
    memcpy(&x, &word, 4);
    return splat(x);
}

/* c + a * b, rounded once where the processor does that, twice elsewhere; one way on one machine. */
INLINE vf fused(vf c, vf a, vf b) {
#if defined(__AVX512F__)
    return (vf)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__AVX2__) && defined(__FMA__)
    return (vf)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(__aarch64__)
    float32x4x2_t sum, one, two;
    memcpy(&sum, &c, BYTES);
    memcpy(&one, &a, BYTES);
    memcpy(&two, &b, BYTES);
    sum.val[0] = vfmaq_f32(sum.val[0], one.val[0], two.val[0]);
    sum.val[1] = vfmaq_f32(sum.val[1], one.val[1], two.val[1]);
    memcpy(&c, &sum, BYTES);
    return c;
#else
    return c + a * b;
#endif
}

INLINE vf load_f32(const float *p) { return *(const vf_any *)p; }
INLINE void store_f32(float *p, vf x) { *(vf_any *)p = x; }

/* The number of each lane. */
INLINE vi lane_numbers(void) {
#if LANES == 16
    return (vi){0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
#else
    return (vi){0, 1, 2, 3, 4, 5, 6, 7};
#endif
}

/* LANES 16-bit values, each in a 32-bit lane. GCC 12 writes the portable form in two halves. */
INLINE vu widen(const bf16 *p) {
#if defined(__AVX512F__)
    return (vu)_mm512_cvtepu16_epi32((__m256i)*(const vh_any *)p);
#elif defined(__AVX2__)
    return (vu)_mm256_cvtepu16_epi32((__m128i)*(const vh_any *)p);
#else
    return __builtin_convertvector(*(const vh_any *)p, vu);
#endif
}

INLINE vf load_bf16(const bf16 *p) { return (vf)(widen(p) << 16); }

/* The lower halves of the lanes, whose upper halves are zero. */
INLINE vh narrow(vu x) {
#if defined(__AVX512F__)
    return (vh)_mm512_cvtepi32_epi16((__m512i)x);
#elif defined(__AVX2__)
    __m256i whole = (__m256i)x;
    return (vh)_mm_packus_epi32(_mm256_castsi256_si128(whole), _mm256_extracti128_si256(whole, 1));
#else
    return __builtin_convertvector(x, vh);
#endif
}

INLINE vh round_bf16(vf x) {
#ifdef __AVX512BF16__
    return (vh)_mm512_cvtneps_pbh((__m512)x);
#else
    vu bits = (vu)x;
    return narrow((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
#endif
}

INLINE void store_bf16(bf16 *p, vf x) { *(vh_any *)p = round_bf16(x); }

/* Store what is rounded already, every bit of it: a rounding instruction makes zeros of the smallest numbers. */
INLINE void keep_f32(float *p, vf x) { store_f32(p, x); }
INLINE void keep_bf16(bf16 *p, vf x) { *(vh_any *)p = narrow((vu)x >> 16); }

#define UPPER_HALF ((vu)((vi){0} - 1) << 16)

INLINE vf choose(vi mask, vf yes, vf no) { return (vf)(((vi)yes & mask) | ((vi)no & ~mask)); }

/* a > b ? a : b in each lane. */
INLINE vf maximum(vf a, vf b) {
#if defined(__AVX512F__)
    return (vf)_mm512_max_ps((__m512)a, (__m512)b);
#elif defined(__AVX2__)
    return (vf)_mm256_max_ps((__m256)a, (__m256)b);
#else
    return choose(a > b, a, b);
#endif
}

INLINE vu shuffle2(vu a, vu b, vu index) {
#ifdef __clang__
    vu result;
    for (int i = 0; i < LANES; i++) result[i] = index[i] < LANES ? a[index[i]] : b[index[i] - LANES];
    return result;
#else
    return __builtin_shuffle(a, b, index);
#endif
}

/* x with the lanes from `half` on moved to the front; a constant each, so that no index is built at run time. */
INLINE vf moved_down(vf x, const int half) {
#if LANES == 16
    if (half == 8) return (vf)shuffle2((vu)x, (vu)x, (vu){8, 9, 10, 11, 12, 13, 14, 15, 8, 9, 10, 11, 12, 13, 14, 15});
    if (half == 4) return (vf)shuffle2((vu)x, (vu)x, (vu){4, 5, 6, 7, 4, 5, 6, 7, 4, 5, 6, 7, 4, 5, 6, 7});
    if (half == 2) return (vf)shuffle2((vu)x, (vu)x, (vu){2, 3, 2, 3, 2, 3, 2, 3, 2, 3, 2, 3, 2, 3, 2, 3});
    return (vf)shuffle2((vu)x, (vu)x, (vu){1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1});
#else
    if (half == 4) return (vf)shuffle2((vu)x, (vu)x, (vu){4, 5, 6, 7, 4, 5, 6, 7});
    if (half == 2) return (vf)shuffle2((vu)x, (vu)x, (vu){2, 3, 2, 3, 2, 3, 2, 3});
    return (vf)shuffle2((vu)x, (vu)x, (vu){1, 1, 1, 1, 1, 1, 1, 1});
#endif
}

/* One tree over the lanes: halves onto halves. */
INLINE float sum(vf x) {
    if (LANES == 16) x += moved_down(x, 8);
    x += moved_down(x, 4);
    x += moved_down(x, 2);
    x += moved_down(x, 1);
    return x[0];
}

INLINE float max_lane(vf x) {
    if (LANES == 16) x = maximum(x, moved_down(x, 8));
    x = maximum(x, moved_down(x, 4));
    x = maximum(x, moved_down(x, 2));
    x = maximum(x, moved_down(x, 1));
    return x[0];
}

/* e^x for x <= 88, relative error below 2e-7 (Cephes' polynomial); 0 below -87. */
INLINE vf exponential(vf x) {
    vi tiny = x < splat(-87.0f);
    x = maximum(x, splat(-87.0f));
    vf shifted = fused(splat(12582912.0f), x, splat(1.44269504088896341f)); /* an integer in the low bits */
    vf whole = shifted - 12582912.0f;
    vf r = fused(fused(x, whole, splat(-0.693359375f)), whole, splat(2.12194440e-4f));
    vf p = splat(1.9875691500e-4f);
    p = fused(splat(1.3981999507e-3f), p, r);
    p = fused(splat(8.3334519073e-3f), p, r);
    p = fused(splat(4.1665795894e-2f), p, r);
    p = fused(splat(1.6666665459e-1f), p, r);
    p = fused(splat(5.0000001201e-1f), p, r);
    p = fused(r, p, r * r) + 1.0f;
    vi power = ((vi)shifted - (vi)splat(12582912.0f)) << 23;
    return choose(tiny, (vf){0}, (vf)((vi)p + power));
}

/* 1 / x for x in [1, 2^126], relative error below 2e-7: a guess from the bits, thrice Newton's step. A division
   of 16 lanes takes as long as all of silu's other steps. */
INLINE vf reciprocal(vf x) {
    vf guess = (vf)((vi)(vu){0} + 0x7ef311c7 - (vi)x);
    guess *= fused(splat(2.0f), -x, guess);
    guess *= fused(splat(2.0f), -x, guess);
    return guess * fused(splat(2.0f), -x, guess);
}

/* One stage of a transposition: swap the off-diagonal squares of size `distance`. The indices must be
   constants, or the compiler builds them again for every call. */
INLINE void swap_squares(vu *r, const int distance, const vu low, const vu high) {
#pragma GCC unroll 16
    for (int i = 0; i < LANES; i++)
        if (!(i & distance)) {
            vu first = r[i], second = r[i + distance];
            r[i] = shuffle2(first, second, low);
            r[i + distance] = shuffle2(first, second, high);
        }
}

/* LANES rows of LANES 32-bit values to the columns' order, `width` words from one to the next. */
INLINE void transpose(const char *const rows[LANES], uint32_t *out, long width) {
    vu r[LANES];
#pragma GCC unroll 16
    for (int i = 0; i < LANES; i++) r[i] = *(const vu_any *)rows[i];
#if LANES == 16
    swap_squares(r, 8, (vu){0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23},
                 (vu){8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31});
    swap_squares(r, 4, (vu){0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25, 26, 27},
                 (vu){4, 5, 6, 7, 20, 21, 22, 23, 12, 13, 14, 15, 28, 29, 30, 31});
    swap_squares(r, 2, (vu){0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29},
                 (vu){2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31});
    swap_squares(r, 1, (vu){0, 16, 2, 18, 4, 20, 6, 22, 8, 24, 10, 26, 12, 28, 14, 30},
                 (vu){1, 17, 3, 19, 5, 21, 7, 23, 9, 25, 11, 27, 13, 29, 15, 31});
#else
    swap_squares(r, 4, (vu){0, 1, 2, 3, 8, 9, 10, 11}, (vu){4, 5, 6, 7, 12, 13, 14, 15});
    swap_squares(r, 2, (vu){0, 1, 8, 9, 4, 5, 12, 13}, (vu){2, 3, 10, 11, 6, 7, 14, 15});
    swap_squares(r, 1, (vu){0, 8, 2, 10, 4, 12, 6, 14}, (vu){1, 9, 3, 11, 5, 13, 7, 15});
#endif
#pragma GCC unroll 16
    for (int i = 0; i < LANES; i++) *(vu_any *)(out + i * width) = r[i];
}

#endif
