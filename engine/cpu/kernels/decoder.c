/* The decoder's operations besides matrix products, for float32 and bfloat16. Compiled on first use
   by engine/cpu/kernel_library.py with -march=native; reads and writes KV blocks in place. */
#include <math.h>

#include "decoder.h"
#include "vector.h"

#define PASTE_(a, b) a##_##b
#define PASTE(a, b) PASTE_(a, b)

/* LANES times c += a * b, where a is one 32-bit word for all lanes: a float, or two bf16 values. */
INLINE vf multiply_add_f32(vf c, uint32_t a, vu b) {
    float x;
    memcpy(&x, &a, 4);
    return c + x * (vf)b;
}

INLINE vf multiply_add_bf16(vf c, uint32_t a, vu b) {
#ifdef __AVX512BF16__
    return (vf)_mm512_dpbf16_ps((__m512)c, (__m512bh)b, (__m512bh)_mm512_set1_epi32((int)a));
#else
    uint32_t low = a << 16, high = a & 0xffff0000u;
    float x, y;
    memcpy(&x, &low, 4);
    memcpy(&y, &high, 4);
    return c + x * (vf)(b << 16) + y * (vf)(b & 0xffff0000u);
#endif
}

/* LANES times c += a * b, where a lane is a float, or two bf16 values. */
INLINE vf multiply_add_lanes_f32(vf c, vu a, vu b) { return c + (vf)a * (vf)b; }

INLINE vf multiply_add_lanes_bf16(vf c, vu a, vu b) {
#ifdef __AVX512BF16__
    return (vf)_mm512_dpbf16_ps((__m512)c, (__m512bh)a, (__m512bh)b);
#else
    const vu upper = (vu)((vi){0} - 1) << 16;
    return c + (vf)(a << 16) * (vf)(b << 16) + (vf)(a & upper) * (vf)(b & upper);
#endif
}

INLINE float scalar_f32(float x) { return x; }
INLINE float narrow_f32(float x) { return x; }

INLINE float scalar_bf16(bf16 x) {
    uint32_t bits = (uint32_t)x << 16;
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

INLINE bf16 narrow_bf16(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    return (bf16)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

#define TYPE float
#define NAME(name) PASTE(name, f32)
#define PACKED 1 /* elements per 32-bit word */
#include "operations.h"
#undef TYPE
#undef NAME
#undef PACKED

#define TYPE bf16
#define NAME(name) PASTE(name, bf16)
#define PACKED 2
#include "operations.h"
