// SPDX-License-Identifier: Apache-2.0
// TCP request and response: one byte there, one byte back, and how long that took.
//
// pingpong serve            answers one client on port 5002, then ends
// pingpong ADDRESS SECONDS  asks for so long; prints "MEDIAN P99 P999 LONGEST COUNT", the times in ns

#include <arpa/inet.h>
#include <err.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { PORT = 5002, MOST = 2000000, LEAST = 100, WARM = 100 };

static unsigned took[MOST];

static long long ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000000000LL + now.tv_nsec;
}

static int serve(void)
{
    struct sockaddr_in here = {.sin_family = AF_INET, .sin_port = htons(PORT)};
    int sock = socket(AF_INET, SOCK_STREAM, 0), one = 1, client;
    char byte;

    setsockopt(sock, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(sock, (struct sockaddr *)&here, sizeof here) || listen(sock, 1))
        err(1, "listen");
    client = accept(sock, NULL, NULL);
    setsockopt(client, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    while (read(client, &byte, 1) == 1)
        if (write(client, &byte, 1) != 1)
            break;
    return 0;
}

static int reach(const char *address)
{
    struct sockaddr_in there = {.sin_family = AF_INET, .sin_port = htons(PORT)};
    int one = 1;

    if (inet_pton(AF_INET, address, &there.sin_addr) != 1)
        errx(2, "%s: not an IPv4 address", address);
    for (int tries = 3000; tries; tries--) { // the server may still be starting
        int sock = socket(AF_INET, SOCK_STREAM, 0);

        setsockopt(sock, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        if (!connect(sock, (struct sockaddr *)&there, sizeof there))
            return sock;
        if (errno != ECONNREFUSED)
            err(1, "%s", address);
        close(sock);
        usleep(10000);
    }
    errx(1, "%s: nobody serves there", address);
}

static int order(const void *a, const void *b)
{
    unsigned x = *(const unsigned *)a, y = *(const unsigned *)b;

    return (x > y) - (x < y);
}

int main(int argc, char **argv)
{
    char byte = 0;
    int count = 0;

    if (argc == 2 && !strcmp(argv[1], "serve"))
        return serve();
    if (argc != 3)
        errx(2, "usage: pingpong serve | pingpong ADDRESS SECONDS");
    int sock = reach(argv[1]);
    long long end = ns() + (long long)(atof(argv[2]) * 1e9), before = ns();
    for (int turn = 0; (before < end || count < LEAST) && count < MOST; turn++) {
        if (write(sock, &byte, 1) != 1 || read(sock, &byte, 1) != 1)
            err(1, "the connection broke");
        long long now = ns();
        if (turn >= WARM)
            took[count++] = now - before;
        before = now;
    }
    qsort(took, count, sizeof *took, order);
    printf("%u %u %u %u %d\n", took[count / 2], took[(long long)count * 99 / 100],
           took[(long long)count * 999 / 1000], took[count - 1], count);
    return 0;
}
