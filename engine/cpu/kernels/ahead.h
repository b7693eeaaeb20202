/* What is asked for before it is needed. Owns how far ahead and into which cache; changes no result.

   Zen 4's first cache waits for so few lines at a time that asking for one more stops the arithmetic. With
   SECOND_CACHE_FIRST keys, values and what is far ahead of a panel go into the second cache, which waits for more. What
   few rows read needs no asking there: the processor sees it coming. Measured: docs/LOG.md, "what Zen 4 asks for". */
#ifndef BATON_AHEAD_H
#define BATON_AHEAD_H

#include "vector.h"

#define AHEAD_WORDS 2048 /* how far before its use a panel is asked for */
#define NEAR_WORDS 512   /* with SECOND_CACHE_FIRST: into the first cache */
#define FAR_WORDS 8192   /* and into the second */
#define FEW_ROWS 6       /* that panels are left to the processor for */

#ifdef SECOND_CACHE_FIRST
#define ask_for_kv(line) __builtin_prefetch(line, 0, 2)
#else
#define ask_for_kv(line) __builtin_prefetch(line)
#endif

/* Of a panel that `rows` rows (a constant) read from its beginning to its end, while they are at `column`. */
INLINE void ask_for_panel(const int rows, const uint32_t *column) {
#ifdef SECOND_CACHE_FIRST
    if (rows <= FEW_ROWS) return;
    __builtin_prefetch(column + NEAR_WORDS);
    __builtin_prefetch(column + NEAR_WORDS + LANES);
    __builtin_prefetch(column + FAR_WORDS, 0, 2);
    __builtin_prefetch(column + FAR_WORDS + LANES, 0, 2);
#else
    __builtin_prefetch(column + AHEAD_WORDS);
    if (BYTES == 64) __builtin_prefetch(column + AHEAD_WORDS + LANES);
#endif
}

#endif
