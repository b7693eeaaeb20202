/* Products of the kernels, built for a processor that is emulated: beside sums in double, and each row alone. */
#include "decoder.c"

#include <stdio.h>
#include <stdlib.h>

static uint32_t seed = 1;

static float drawn(void) {
    seed = seed * 1664525u + 1013904223u;
    return (float)(seed >> 8) / (1 << 23) - 1.0f;
}

static uint16_t upper_half(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    return (uint16_t)(bits >> 16);
}

static float as_float(uint16_t half) {
    uint32_t bits = (uint32_t)half << 16;
    float x;
    memcpy(&x, &bits, 4);
    return x;
}

/* Of float32 (size 4) or bfloat16 (size 2); returns how many numbers are wrong. */
static int64_t wrong(int64_t size, int64_t rows, int64_t outputs, int64_t inputs) {
    int64_t words = inputs * size / 4, panels = (outputs + PANEL - 1) / PANEL, bad = 0;
    char *x = malloc(rows * inputs * size), *w = malloc(outputs * inputs * size);
    char *out = malloc(rows * outputs * size), *alone = malloc(outputs * size);
    uint32_t *packed = aligned_alloc(64, panels * PANEL * words * 4);
    float *wide = aligned_alloc(64, (rows * inputs * 4 + 63) / 64 * 64);
    for (int64_t i = 0; i < rows * inputs + outputs * inputs; i++) {
        char *to = i < rows * inputs ? x + i * size : w + (i - rows * inputs) * size;
        float value = drawn();
        uint16_t half = upper_half(value);
        memcpy(to, size == 4 ? (void *)&value : (void *)&half, size);
    }
    pack((uint32_t *)w, packed, outputs, words, 0, 1);
    Matrix matrix = {.panels = packed, .outputs = outputs, .words = words, .inputs = inputs};
    Product all = {.matrix = &matrix, .x = x, .out = out, .wide = wide, .rows = rows, .num_threads = 1};
    size == 4 ? product_f32(&all) : product_bf16(&all);
    for (int64_t r = 0; r < rows; r++) {
        Product one = all;
        one.x = x + r * inputs * size, one.out = alone, one.rows = 1;
        size == 4 ? product_f32(&one) : product_bf16(&one);
        bad += memcmp(alone, out + r * outputs * size, outputs * size) != 0;
        for (int64_t o = 0; o < outputs; o++) {
            double sum = 0;
            for (int64_t i = 0; i < inputs; i++)
                sum += size == 4 ? (double)((float *)x)[r * inputs + i] * ((float *)w)[o * inputs + i]
                                 : (double)as_float(((uint16_t *)x)[r * inputs + i]) * as_float(((uint16_t *)w)[o * inputs + i]);
            double told = size == 4 ? ((float *)out)[r * outputs + o] : as_float(((uint16_t *)out)[r * outputs + o]);
            bad += fabs(told - sum) > (size == 4 ? 1e-4 : 0.01 * fabs(sum) + 0.01);
        }
    }
    free(x), free(w), free(out), free(alone), free(packed), free(wide);
    return bad;
}

int main(void) {
    prepare();
    int64_t bad = 0;
    for (int64_t size = 2; size <= 4; size += 2)
        for (int64_t rows = 1; rows <= 33; rows += rows < 8 ? 1 : 5) bad += wrong(size, rows, 72, 96) + wrong(size, rows, 40, 34);
    printf("%s %lld wrong\n", arithmetic(1), (long long)bad);
    return bad != 0;
}
