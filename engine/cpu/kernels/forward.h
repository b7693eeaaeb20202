/* A whole step in one call, once for both element types; the order of operations is engine/model/decoder.py's.

   The residual is summed at the end of the products out and down. Scratch, one array after the other:

       normed [tokens, hidden] · qkv [tokens, heads + 2 kv_heads, dim] · query, attended [tokens, heads, dim]
       active [tokens, inner] · wide: the widest row of x as floats, or as bytes with their scales
       extra: floats for the widest sums of every row that has an adapter · a room for each lent thread: the widest result */

INLINE int64_t NAME(widest)(const Decoder *d) {
    int64_t heads = d->num_heads * d->head_dim, inner = d->layers[0].gate_up.outputs;
    int64_t widest = d->hidden > heads ? d->hidden : heads;
    return widest > inner ? widest : inner;
}

/* Bytes of what adapters add to the sums of so many rows. A last panel reads beyond. */
INLINE int64_t NAME(extra_bytes)(const Decoder *d, int64_t adapted) {
    int64_t gated = 2 * d->layers[0].gate_up.outputs, qkv = d->layers[0].qkv.outputs;
    int64_t widest = gated > qkv ? gated : qkv;
    if (d->hidden > widest) widest = d->hidden;
    return adapted ? (adapted * widest * 4 + BYTES + 63) / 64 * 64 : 0;
}

/* Bytes of the largest result of an operation. */
INLINE int64_t NAME(room_bytes)(const Decoder *d, int64_t tokens, int64_t samples, int64_t adapted) {
    int64_t qkv = d->layers[0].qkv.outputs, widest = NAME(widest)(d), extra = NAME(extra_bytes)(d, adapted);
    int64_t elements = tokens * (widest > qkv ? widest : qkv), logits = samples * d->head.outputs;
    int64_t bytes = ((elements > logits ? elements : logits) * (int64_t)sizeof(TYPE) + 63) / 64 * 64;
    return bytes > extra ? bytes : extra;
}

/* Bytes of a row of x as floats or as bytes, where products want it so. */
INLINE int64_t NAME(wide_bytes)(const Decoder *d) {
    int is_wide = (PACKED == 2 && widens()) || d->head.quantized || d->layers[0].qkv.quantized;
    return is_wide ? (NAME(widest)(d) + SHARE) * 4 : 0;
}

INLINE int64_t NAME(own_bytes)(const Decoder *d, int64_t tokens, int64_t adapted) {
    int64_t heads = d->num_heads * d->head_dim, qkv = d->layers[0].qkv.outputs;
    int64_t elements = d->hidden + qkv + 2 * heads + d->layers[0].gate_up.outputs;
    return tokens * (elements * (int64_t)sizeof(TYPE) + NAME(wide_bytes)(d)) + 6 * 64 + NAME(extra_bytes)(d, adapted);
}

/* Bytes of scratch for a step of so many tokens, of which so many are sampled and so many have adapters, with so many
   lent threads. */
int64_t NAME(scratch_bytes)(const Decoder *d, int64_t tokens, int64_t samples, int64_t helpers, int64_t adapted) {
    return NAME(own_bytes)(d, tokens, adapted) + 64 + helpers * NAME(room_bytes)(d, tokens, samples, adapted);
}

/* Rows that have adapters, and what has room for them. */
typedef struct {
    float *extra;
    int64_t sampled; /* only the sampled rows are left */
} NAME(Adapted);

static void NAME(multiply)(const Step *s, const Matrix *m, int64_t rows, const void *x, void *out, int64_t adds,
                           float *wide) {
    Product p = {.matrix = m, .x = x, .out = out, .wide = wide, .rows = rows, .adds = adds,
                 .team = s->team, .num_threads = s->num_threads};
    NAME(product)(&p);
}

/* The same where rows may have adapters; `place` is where a layer of an adapter has its part of the matrix. */
static void NAME(multiply_adapted)(const Step *s, const Matrix *m, int64_t rows, const void *x, void *out, int64_t adds,
                                   float *wide, const NAME(Adapted) *adapted, int64_t layer, int64_t place) {
    Product p = {.matrix = m, .x = x, .out = out, .wide = wide, .rows = rows, .adds = adds,
                 .team = s->team, .num_threads = s->num_threads};
    if (s->num_segments) {
        p.extra_from = adapted->sampled ? s->segments->sampled_first : s->segments->first;
        p.extra = adapted->extra;
        NAME(adapt)(s, &p, layer, place, adapted->sampled, adapted->extra);
    }
    NAME(product)(&p);
}

/* Keep the sampled rows of `rows`, in front. */
static void NAME(keep_sampled)(const Step *s, TYPE *rows, int64_t width) {
    for (int64_t i = 0; i < s->num_samples; i++)
        memmove(rows + i * width, rows + s->sample_rows[i] * width, width * sizeof(TYPE));
}

/* Keys and values of every token to their blocks, logits or last states of the sampled rows. */
void NAME(forward)(const Step *s) {
    const Decoder *d = s->decoder;
    int64_t rows = s->num_tokens, hidden = d->hidden, heads = d->num_heads * d->head_dim;
    TYPE *residual = s->residual;
    TYPE *normed = (TYPE *)aligned(s->scratch);
    TYPE *qkv = (TYPE *)aligned((char *)(normed + rows * hidden));
    TYPE *query = (TYPE *)aligned((char *)(qkv + rows * d->layers[0].qkv.outputs));
    TYPE *attended = query + rows * heads;
    TYPE *active = (TYPE *)aligned((char *)(attended + rows * heads));
    float *wide = (float *)aligned((char *)(active + rows * d->layers[0].gate_up.outputs));
    int64_t num_adapted = s->num_segments ? rows - s->segments->first : 0;
    char *behind = (char *)wide + rows * NAME(wide_bytes)(d);
    NAME(Adapted) adapted = {.extra = (float *)aligned(behind)};
    begin_lending(s->team, aligned((char *)s->scratch + NAME(own_bytes)(d, rows, num_adapted)),
                  NAME(room_bytes)(d, rows, s->num_samples, num_adapted));
    for (int64_t i = 0; i < d->num_layers; i++) {
        const Layer *layer = d->layers + i;
        NAME(norm)(residual, layer->input_norm, normed, rows, hidden, d->epsilon, s->num_threads);
        NAME(multiply_adapted)(s, &layer->qkv, rows, normed, qkv, 0, wide, &adapted, i, offsetof(AdapterLayer, qkv));
        NAME(attend)(s, i, qkv, query, attended);
        if (i == d->num_layers - 1) { /* the KV is complete: from here on only the sampled rows matter */
            NAME(keep_sampled)(s, attended, heads);
            NAME(keep_sampled)(s, residual, hidden);
            rows = s->num_samples;
            adapted.sampled = 1;
        }
        NAME(multiply_adapted)(s, &layer->out, rows, attended, residual, 1, wide, &adapted, i, offsetof(AdapterLayer, out));
        NAME(norm)(residual, layer->post_norm, normed, rows, hidden, d->epsilon, s->num_threads);
        NAME(multiply_adapted)(s, &layer->gate_up, rows, normed, active, 0, wide, &adapted, i,
                               offsetof(AdapterLayer, gate_up));
        NAME(multiply_adapted)(s, &layer->down, rows, active, residual, 1, wide, &adapted, i, offsetof(AdapterLayer, down));
    }
    NAME(norm)(residual, d->norm, normed, rows, hidden, d->epsilon, s->num_threads);
    if (s->states)
        memcpy(s->states, normed, rows * hidden * sizeof(TYPE));
    else
        NAME(multiply)(s, &d->head, rows, normed, s->logits, 0, wide);
    end_lending(s->team);
}
