/* Work of a step by its own threads, and by cores that other workers lend. Owns the threads on lent cores and who computes
   which item; knows no tensors.

   An operation has `items` that no two threads compute in the same place: its own threads take them from the front, lent
   threads from the back. A lent thread runs only when nothing else wants its core (SCHED_IDLE), so it may stop for long
   anywhere. Nobody waits for it: it writes to its own room alone, and what it has not finished when everything else is, a
   thread of the step computes again. Until such a straggler is back, nothing is offered to lent threads; what it was given
   must stay readable for that long. Equal items give equal bits, whoever computes them.

       word of a core, in memory that the host's workers share:
       BUSY ◄── its owner, always          IDLE ◄── its owner, before it sleeps
       IDLE ──► a borrower's number, by the borrower, for a step or less ──► IDLE */
#ifndef BATON_LENDING_H
#define BATON_LENDING_H

#include <pthread.h>
#include <sched.h>
#include <semaphore.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#include "decoder.h"

#define BUSY 0
#define IDLE 1
#define WORD_STRIDE 16 /* words from one core's to the next: a line of the cache each */
#define MAX_HELPERS 15
#define MAX_ITEMS 16384
#define PATIENCE 2 /* how many times as long as it takes the step's own threads, lent ones may take for their items; and */
#define PATIENCE_NS 20000

/* One operation. `compute` writes to `room`, or where the result belongs if that is null; `take` brings it there. */
typedef struct Work {
    void (*compute)(const struct Work *, int64_t low, int64_t high, char *room);
    void (*take)(const struct Work *, int64_t low, int64_t high, const char *room);
    int64_t items, own_items, lent_items; /* of which a thread takes so many at once, at most */
    int64_t num_threads, layer;
    Product product;           /* what is multiplied, */
    int64_t place, sampled;    /* what its adapters are; see adapters.h */
    const Step *step;          /* or attended to */
    const void *query;
    void *out;
} Work;

typedef struct {
    Team *team;
    pthread_t thread;
    sem_t wanted;
    _Atomic uint32_t *word;
    int32_t core, started;
    int64_t number;
    _Alignas(64) _Atomic uint32_t parked; /* it waits to be wanted */
    _Atomic uint32_t inside;              /* it has items, or looks for some */
} Helper;

struct Team {
    int64_t num_helpers;
    uint32_t token;
    int64_t straggles; /* somebody may still be in what was computed again; the step's own */
    char *rooms, *next_rooms; /* those of the operation, and those of the step that goes on */
    int64_t room_bytes, next_room_bytes;
    _Atomic uint32_t active, closing;
    _Atomic int64_t lent_items;
    Work work;
    Helper helpers[MAX_HELPERS];
    _Alignas(64) _Atomic uint64_t left;         /* items that nobody has: from the lower half up to the upper half */
    _Alignas(64) _Atomic uint8_t by[MAX_ITEMS]; /* 1 + the number of the helper that finished it */
};

INLINE void relax(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

INLINE int64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000000000 + now.tv_nsec;
}

/* Some items off one end, the more the more are left, but `most` at most; 0 when there are none. */
INLINE int64_t take_items(_Atomic uint64_t *left, int from_back, int64_t share, int64_t most, int64_t *low) {
    uint64_t old = atomic_load_explicit(left, memory_order_relaxed);
    for (;;) {
        uint64_t front = (uint32_t)old, back = old >> 32;
        if (front >= back) return 0;
        int64_t count = (int64_t)(back - front) / share;
        if (count > most) count = most;
        if (count < 1) count = 1;
        uint64_t next = from_back ? old - ((uint64_t)count << 32) : old + (uint64_t)count;
        if (atomic_compare_exchange_weak_explicit(left, &old, next, memory_order_acquire, memory_order_relaxed)) {
            *low = from_back ? (int64_t)back - count : (int64_t)front;
            return count;
        }
    }
}

/* ---- a lent thread */

/* Helper `number` takes some items; 0 when there are none. From then on, until `finish_items`, the operation stays as it
   is: the step offers nothing new while somebody is inside whom it could not wait for. */
int64_t claim_items(Team *t, int64_t number, int64_t *low) {
    Helper *h = t->helpers + number;
    atomic_store(&h->inside, 1);
    int64_t most = atomic_load_explicit(&t->lent_items, memory_order_relaxed);
    int64_t count = take_items(&t->left, 1, 2 * (t->num_helpers + 1), most, low);
    if (!count) atomic_store_explicit(&h->inside, 0, memory_order_release);
    return count;
}

void finish_items(Team *t, int64_t number, int64_t low, int64_t count) {
    t->work.compute(&t->work, low, low + count, t->rooms + number * t->room_bytes);
    for (int64_t i = low; i < low + count; i++)
        atomic_store_explicit(&t->by[i], (uint8_t)(number + 1), memory_order_release);
    atomic_store_explicit(&t->helpers[number].inside, 0, memory_order_release);
}

static int is_lent(const Helper *h) {
    return atomic_load_explicit(h->word, memory_order_relaxed) == h->team->token;
}

static void *help(void *argument) {
    Helper *h = argument;
    Team *t = h->team;
    int64_t low, count;
    for (;;) {
        while (sem_wait(&h->wanted)) {}
        if (atomic_load(&t->closing)) return NULL;
        while (atomic_load_explicit(&t->active, memory_order_relaxed) && is_lent(h)) {
            if ((count = claim_items(t, h->number, &low))) finish_items(t, h->number, low, count);
            else relax();
        }
        atomic_store_explicit(&h->parked, 1, memory_order_release);
    }
}

/* ---- the step */

/* Whether all lent threads have let go of what they were given. */
int64_t all_are_back(Team *t) {
    if (!t->straggles) return 1;
    for (Helper *h = t->helpers; h < t->helpers + t->num_helpers; h++)
        if (atomic_load_explicit(&h->inside, memory_order_acquire)) return 0;
    t->straggles = 0;
    return 1;
}

/* Ask for every core that is idle; how many are lent now. */
static int64_t borrow(Team *t) {
    int64_t lent = 0;
    for (Helper *h = t->helpers; h < t->helpers + t->num_helpers; h++) {
        uint32_t idle = IDLE;
        if (is_lent(h)) lent++;
        else if (atomic_load_explicit(h->word, memory_order_relaxed) == IDLE &&
                 atomic_load_explicit(&h->parked, memory_order_acquire) &&
                 atomic_compare_exchange_strong(h->word, &idle, t->token)) {
            atomic_store(&h->parked, 0);
            sem_post(&h->wanted);
            lent++;
        }
    }
    return lent;
}

/* From here on lent threads may be given items, with a part of `rooms` for each of them. */
void begin_lending(Team *t, char *rooms, int64_t room_bytes) {
    if (!t) return;
    t->next_rooms = rooms;
    t->next_room_bytes = room_bytes;
    atomic_store(&t->active, 1);
}

void end_lending(Team *t) {
    if (!t) return;
    atomic_store(&t->active, 0);
    for (Helper *h = t->helpers; h < t->helpers + t->num_helpers; h++) {
        uint32_t token = t->token;
        atomic_compare_exchange_strong(h->word, &token, IDLE);
    }
}

/* Items `low` up are a lent thread's: bring each where it belongs. What is not finished within the patience of
   `limit_ns` is computed again. */
static void join(Team *t, const Work *work, int64_t low, int64_t limit_ns) {
    int64_t end_ns = 0;
    for (int64_t i = low, high; i < work->items; i = high) {
        uint8_t by;
        while (!(by = atomic_load_explicit(&t->by[i], memory_order_acquire))) {
            if (t->straggles) break;
            if (!end_ns) end_ns = now_ns() + limit_ns;
            t->straggles = now_ns() > end_ns;
            relax();
        }
        for (high = i + 1; by && high < work->items; high++)
            if (atomic_load_explicit(&t->by[high], memory_order_acquire) != by) break;
        if (by) work->take(work, i, high, t->rooms + (by - 1) * t->room_bytes);
        else work->compute(work, i, high, NULL);
    }
}

/* Every item of an operation, by whoever is there. */
static void run(Team *t, const Work *work) {
    _Atomic uint64_t own, *left = &own;
    uint64_t all = (uint64_t)work->items << 32;
    int64_t lent = 0, begin_ns = 0;
    if (t && atomic_load_explicit(&t->active, memory_order_relaxed) && work->items > 1 && work->items <= MAX_ITEMS &&
        all_are_back(t) && (lent = borrow(t))) {
        memset((void *)t->by, 0, work->items);
        t->work = *work;
        t->rooms = t->next_rooms;
        t->room_bytes = t->next_room_bytes;
        atomic_store_explicit(&t->lent_items, work->lent_items, memory_order_relaxed);
        left = &t->left;
        begin_ns = now_ns();
    }
    int64_t share = lent ? 2 * (work->num_threads + lent) : work->num_threads;
    atomic_store_explicit(left, all, memory_order_release);
#pragma omp parallel if (work->num_threads > 1) num_threads(work->num_threads)
    {
        int64_t low, count;
        while ((count = take_items(left, 0, share, work->own_items, &low))) work->compute(work, low, low + count, NULL);
    }
    if (!lent) return;
    int64_t first = (int64_t)(atomic_load_explicit(left, memory_order_relaxed) >> 32);
    if (first == work->items) return;
    int64_t item_ns = (now_ns() - begin_ns) / (first ? first : 1);
    join(t, work, first, PATIENCE * work->lent_items * item_ns * work->num_threads + PATIENCE_NS);
}

/* ---- a team's life */

static int start_helper(Helper *h) {
    const struct sched_param none = {0};
    pthread_attr_t attributes;
    cpu_set_t core;
    sigset_t all, before;
    CPU_ZERO(&core);
    CPU_SET(h->core, &core);
    sigfillset(&all);
    pthread_attr_init(&attributes);
    pthread_sigmask(SIG_SETMASK, &all, &before); /* signals are for the process's other threads */
    h->started = !pthread_attr_setaffinity_np(&attributes, sizeof core, &core) &&
                 !pthread_create(&h->thread, &attributes, help, h);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_attr_destroy(&attributes);
    return h->started && !pthread_setschedparam(h->thread, SCHED_IDLE, &none);
}

/* Waits for every lent thread, on the cores of the calling one, where it gets time. */
void close_team(Team *t) {
    cpu_set_t own;
    struct sched_param usual = {0};
    sched_getaffinity(0, sizeof own, &own);
    atomic_store(&t->active, 0);
    atomic_store(&t->closing, 1);
    for (Helper *h = t->helpers; h < t->helpers + t->num_helpers; h++) {
        if (h->started) {
            pthread_setaffinity_np(h->thread, sizeof own, &own);
            pthread_setschedparam(h->thread, SCHED_OTHER, &usual); /* who waits for it wants it to run; not all may */
            sem_post(&h->wanted);
            pthread_join(h->thread, NULL);
        }
        sem_destroy(&h->wanted);
    }
    free(t);
}

/* A thread on each of the cores, whose words are in `words`; null if the system does not let us. `token` is this
   borrower's number, more than IDLE. */
Team *open_team(uint32_t *words, const int32_t *cores, int64_t num_cores, uint32_t token) {
    Team *t = aligned_alloc(64, (sizeof *t + 63) / 64 * 64);
    int started = t != NULL;
    if (!t) return NULL;
    memset((void *)t, 0, sizeof *t);
    t->token = token;
    for (int64_t i = 0; i < num_cores && i < MAX_HELPERS && started; i++) {
        Helper *h = &t->helpers[t->num_helpers++];
        *h = (Helper){.team = t, .core = cores[i], .number = i, .parked = 1};
        h->word = (_Atomic uint32_t *)words + cores[i] * WORD_STRIDE;
        sem_init(&h->wanted, 0, 0);
        started = start_helper(h);
    }
    if (started) return t;
    close_team(t);
    return NULL;
}
#endif
