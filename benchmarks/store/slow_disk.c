/* A disk that takes its time: reads, writes and syncs of files below a folder return later than they would. For LD_PRELOAD; built
 * and used by measures only.
 *
 * BATON_SLOW_DISK is the folder, BATON_SLOW_DISK_MS a file that holds how many milliseconds each call sleeps first; it is read
 * anew each time. Files elsewhere are left alone.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

static int is_below(int fd, const char *folder)
{
    char name[64], path[4096];
    snprintf(name, sizeof name, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(name, path, sizeof path - 1);
    if (length < 0)
        return 0;
    path[length] = 0;
    return strncmp(path, folder, strlen(folder)) == 0;
}

static long milliseconds(const char *told)
{
    long ms = 0;
    FILE *file = fopen(told, "r");
    if (!file)
        return 0;
    if (fscanf(file, "%ld", &ms) != 1)
        ms = 0;
    fclose(file);
    return ms;
}

static void stall(int fd)
{
    const char *folder = getenv("BATON_SLOW_DISK"), *told = getenv("BATON_SLOW_DISK_MS");
    if (!folder || !told || !is_below(fd, folder))
        return;
    long ms = milliseconds(told);
    struct timespec wait = {.tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000};
    nanosleep(&wait, NULL);
}

#define SLOWED(result, name, parameters, arguments)         \
    result name parameters                                  \
    {                                                       \
        result(*real) parameters = dlsym(RTLD_NEXT, #name); \
        stall(fd);                                          \
        return real arguments;                              \
    }

/* Those that CPython calls. */
SLOWED(int, fdatasync, (int fd), (fd))
SLOWED(ssize_t, pread64, (int fd, void *to, size_t size, off64_t at), (fd, to, size, at))
SLOWED(ssize_t, pwrite64, (int fd, const void *from, size_t size, off64_t at), (fd, from, size, at))
SLOWED(ssize_t, preadv64v2, (int fd, const struct iovec *to, int parts, off64_t at, int flags), (fd, to, parts, at, flags))
SLOWED(ssize_t, pwritev64v2, (int fd, const struct iovec *from, int parts, off64_t at, int flags), (fd, from, parts, at, flags))
