// SPDX-License-Identifier: Apache-2.0
// UDP as an application sends and receives it, with the kernel's own segmentation (UDP_SEGMENT, UDP_GRO).
//
// datagrams receive                       says "ready", reads what comes to port 9 until SIGTERM; prints
//                                         "BYTES DATAGRAMS REORDERED NANOSECONDS", from the first to the last
// datagrams send ADDRESS SIZE SECONDS     datagrams of SIZE bytes, as many as fit in 64 KiB with each call
//
// REORDERED counts datagrams whose number (the first 32 bits, as generate.c writes them) is lower than the one before.

#include <arpa/inet.h>
#include <err.h>
#include <errno.h>
#include <netinet/udp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#ifndef UDP_SEGMENT
#define UDP_SEGMENT 103
#define UDP_GRO 104
#endif

enum { PORT = 9, ROOM = 1 << 16, MOST = 64000, SEGMENTS = 64, BUFFER = 8 << 20 };

static volatile sig_atomic_t stopping;

static void stop(int number)
{
    (void)number;
    stopping = 1;
}

static long long ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000000000LL + now.tv_nsec;
}

static int segment_size(struct msghdr *message, int otherwise)
{
    for (struct cmsghdr *c = CMSG_FIRSTHDR(message); c; c = CMSG_NXTHDR(message, c))
        if (c->cmsg_level == IPPROTO_UDP && c->cmsg_type == UDP_GRO) {
            int size;

            memcpy(&size, CMSG_DATA(c), sizeof size);
            return size;
        }
    return otherwise;
}

static int receive(void)
{
    static unsigned char data[ROOM];
    struct sockaddr_in here = {.sin_family = AF_INET, .sin_port = htons(PORT)};
    struct sigaction action = {.sa_handler = stop}; // no SA_RESTART: it ends the read
    int sock = socket(AF_INET, SOCK_DGRAM, 0), one = 1, room = BUFFER;
    long long bytes = 0, datagrams = 0, reordered = 0, first = 0, last = 0;
    unsigned before = 0;

    sigaction(SIGTERM, &action, NULL);
    if (setsockopt(sock, SOL_SOCKET, SO_RCVBUFFORCE, &room, sizeof room))
        err(1, "SO_RCVBUFFORCE");
    setsockopt(sock, IPPROTO_UDP, UDP_GRO, &one, sizeof one);
    if (bind(sock, (struct sockaddr *)&here, sizeof here))
        err(1, "bind");
    puts("ready");
    fflush(stdout);
    // A signal between the test and the read is noticed a tenth of a second later.
    struct timeval patience = {.tv_usec = 100000};
    setsockopt(sock, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    while (!stopping) {
        char control[64];
        struct iovec part = {data, sizeof data};
        struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = control,
                                 .msg_controllen = sizeof control};
        ssize_t n = recvmsg(sock, &message, 0);

        if (n <= 0)
            continue;
        last = ns();
        if (!first)
            first = last;
        int size = segment_size(&message, n);
        for (ssize_t at = 0; at < n; at += size) {
            unsigned number = 0;

            if (n - at >= 4)
                number = (unsigned)data[at] << 24 | data[at + 1] << 16 | data[at + 2] << 8 | data[at + 3];
            reordered += number < before;
            before = number;
            datagrams++;
        }
        bytes += n;
    }
    printf("%lld %lld %lld %lld\n", bytes, datagrams, reordered, last - first);
    return 0;
}

static int send_to(const char *address, int size, double seconds)
{
    static unsigned char data[ROOM];
    struct sockaddr_in there = {.sin_family = AF_INET, .sin_port = htons(PORT)};
    int sock = socket(AF_INET, SOCK_DGRAM, 0), segments = MOST / size;

    if (inet_pton(AF_INET, address, &there.sin_addr) != 1)
        errx(2, "%s: not an IPv4 address", address);
    if (segments > SEGMENTS)
        segments = SEGMENTS;
    if (setsockopt(sock, IPPROTO_UDP, UDP_SEGMENT, &size, sizeof size))
        err(1, "UDP_SEGMENT");
    if (connect(sock, (struct sockaddr *)&there, sizeof there))
        err(1, "%s", address);
    for (long long end = ns() + (long long)(seconds * 1e9); ns() < end;)
        if (send(sock, data, (size_t)size * segments, 0) < 0 && errno != ENOBUFS && errno != ECONNREFUSED)
            err(1, "send");
    return 0;
}

int main(int argc, char **argv)
{
    if (argc == 2 && !strcmp(argv[1], "receive"))
        return receive();
    if (argc == 5 && !strcmp(argv[1], "send") && atoi(argv[3]) > 0)
        return send_to(argv[2], atoi(argv[3]), atof(argv[4]));
    errx(2, "usage: datagrams receive | datagrams send ADDRESS SIZE SECONDS");
}
