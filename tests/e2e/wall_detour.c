/* Sets a process's wall clock, and nobody else's. For LD_PRELOAD; built and used by tests only.
 *
 * BATON_WALL is a file of one double: how many seconds the wall clock is ahead of the machine's. It may change at any
 * time. The monotonic clocks stay as they are.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <math.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

typedef int (*clock_call)(clockid_t, struct timespec *);

static const volatile double *ahead_s;
static clock_call machine;

__attribute__((constructor)) static void begin(void)
{
    const char *path = getenv("BATON_WALL");
    int fd = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    machine = (clock_call)dlsym(RTLD_NEXT, "clock_gettime");
    if (fd < 0)
        return;
    void *mapped = mmap(NULL, sizeof(double), PROT_READ, MAP_SHARED, fd, 0);
    close(fd);
    if (mapped != MAP_FAILED)
        ahead_s = mapped;
}

int clock_gettime(clockid_t clock, struct timespec *now)
{
    if (!machine)
        machine = (clock_call)dlsym(RTLD_NEXT, "clock_gettime");
    int rc = machine(clock, now);
    if (!rc && ahead_s && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE))
        now->tv_sec += (time_t)floor(*ahead_s);
    return rc;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone)
{
    struct timespec told;
    (void)zone;
    int rc = clock_gettime(CLOCK_REALTIME, &told);
    now->tv_sec = told.tv_sec;
    now->tv_usec = told.tv_nsec / 1000;
    return rc;
}

time_t time(time_t *into)
{
    struct timespec told;
    clock_gettime(CLOCK_REALTIME, &told);
    if (into)
        *into = told.tv_sec;
    return told.tv_sec;
}
