/* Sends the TCP connections that UCX makes through a proxy. For LD_PRELOAD; built and used by tests only.
 *
 * BATON_DETOUR is a directory. Its file `proxy` holds the proxy's port on 127.0.0.1. For each connection this
 * writes a file named by the connection's own port, with the process id and the port that was meant: by these the
 * proxy knows, when it accepts, who came and where to. What other libraries connect to is left alone.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dlfcn.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

typedef int (*connect_call)(int, const struct sockaddr *, socklen_t);

static int is_of_ucx(const void *caller)
{
    Dl_info found;
    return dladdr(caller, &found) && found.dli_fname && (strstr(found.dli_fname, "libuct") || strstr(found.dli_fname, "libucs"));
}

static int proxy_port(const char *directory)
{
    char path[4096];
    int port = 0;
    snprintf(path, sizeof path, "%s/proxy", directory);
    FILE *file = fopen(path, "r");
    if (!file)
        return 0;
    if (fscanf(file, "%d", &port) != 1)
        port = 0;
    fclose(file);
    return port;
}

/* The port of this end, chosen now if it has none; 0 when that fails. */
static int own_port(int fd)
{
    struct sockaddr_in own = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof own;
    bind(fd, (struct sockaddr *)&own, length); /* fails if it has a port */
    return getsockname(fd, (struct sockaddr *)&own, &length) ? 0 : ntohs(own.sin_port);
}

static int announce(const char *directory, int port, int meant)
{
    char path[4096];
    snprintf(path, sizeof path, "%s/%d", directory, port);
    FILE *file = fopen(path, "w");
    if (!file)
        return 0;
    fprintf(file, "%d %d", (int)getpid(), meant);
    return fclose(file) == 0;
}

int connect(int fd, const struct sockaddr *address, socklen_t length)
{
    connect_call real = (connect_call)dlsym(RTLD_NEXT, "connect");
    const char *directory = getenv("BATON_DETOUR");
    struct sockaddr_in there;
    if (!directory || address->sa_family != AF_INET || !is_of_ucx(__builtin_return_address(0)))
        return real(fd, address, length);
    memcpy(&there, address, sizeof there);
    int proxy = proxy_port(directory), own = own_port(fd);
    if (!proxy || !own || !announce(directory, own, ntohs(there.sin_port)))
        return real(fd, address, length);
    there.sin_port = htons((unsigned short)proxy);
    there.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    return real(fd, (struct sockaddr *)&there, sizeof there);
}
