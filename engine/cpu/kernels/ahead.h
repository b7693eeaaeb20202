/* What is asked for before it is needed. Owns how far ahead and into which cache; changes no result.

   Zen 4's first cache waits for so few lines at a time that asking for one more stops the arithmetic. With
   SECOND_CACHE_FIRST keys and values go into the second cache, which waits for more, and so does what is far ahead of a
   panel that some rows read a few times. Fewer rows, and prompts, are quicker as everywhere else. Measured:
   docs/LOG.md, "what Zen 4 asks for". */
#ifndef BATON_AHEAD_H
#define BATON_AHEAD_H

#include "vector.h"

#define AHEAD_WORDS 2048 /* how far before its use a panel is asked for */
#define NEAR_WORDS 512   /* with SECOND_CACHE_FIRST: into the first cache */
#define FAR_WORDS 8192   /* and into the second */
#define FEW_ROWS 6       /* of a tile: up to here, and */
#define MANY_TILES 4     /* from so many tiles on, as everywhere else */
#define AS_EVERYWHERE 1
#define SECOND_CACHE 2

#define ADAPTER_WORDS 1024 /* how far before its use an adapter's line is asked for: the parts that follow lie there */

#ifdef SECOND_CACHE_FIRST
#define ask_for_kv(line) __builtin_prefetch(line, 0, 2)
#define ask_for_adapter(line) __builtin_prefetch((line) + ADAPTER_WORDS, 0, 2)
#else
#define ask_for_kv(line) __builtin_prefetch(line)
#define ask_for_adapter(line) __builtin_prefetch((line) + ADAPTER_WORDS)
#endif

/* How the first of some tiles asks for a panel that all of them read. */
INLINE int how_to_ask(int64_t rows, int64_t tiles) {
#ifdef SECOND_CACHE_FIRST
    if (rows > FEW_ROWS && tiles < MANY_TILES) return SECOND_CACHE;
#endif
    return AS_EVERYWHERE;
}

/* Of a panel that is read from its beginning to its end, while its reader is at `column`; `how` is a constant. */
INLINE void ask_for_panel(const int how, const uint32_t *column) {
    if (how == SECOND_CACHE) {
        __builtin_prefetch(column + NEAR_WORDS);
        __builtin_prefetch(column + NEAR_WORDS + LANES);
        __builtin_prefetch(column + FAR_WORDS, 0, 2);
        __builtin_prefetch(column + FAR_WORDS + LANES, 0, 2);
    } else {
        __builtin_prefetch(column + AHEAD_WORDS);
        if (BYTES == 64) __builtin_prefetch(column + AHEAD_WORDS + LANES);
    }
}

#endif
