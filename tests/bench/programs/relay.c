// SPDX-License-Identifier: Apache-2.0
// A TAP at one end, a stream socket at the other, on which each frame stands behind its length (4 bytes, big-endian):
// what a virtual machine monitor does, and no more. The TAP has no offloads: its kernel cuts and sums every frame.
//
// relay DEVICE FD: makes the TAP, says "ready" and carries frames until the socket ends.

#include <arpa/inet.h>
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

enum { FRAME = 1 << 16, ROOM = 1 << 18, HEAD = 4 };

static unsigned char out[ROOM], in[ROOM];
static size_t kept;

static int open_tap(const char *name)
{
    struct ifreq request = {.ifr_flags = IFF_TAP | IFF_NO_PI};
    int fd = open("/dev/net/tun", O_RDWR | O_NONBLOCK);

    strncpy(request.ifr_name, name, IFNAMSIZ - 1);
    if (fd < 0 || ioctl(fd, TUNSETIFF, &request))
        err(1, "%s", name);
    return fd;
}

// As many frames as there are and have room go to the socket with one call, which waits until it has taken all.
static void to_socket(int tap, int sock)
{
    size_t length = 0, done = 0;
    ssize_t n;

    while (length + HEAD + FRAME <= ROOM && (n = read(tap, out + length + HEAD, FRAME)) > 0) {
        uint32_t size = htonl(n);

        memcpy(out + length, &size, HEAD);
        length += HEAD + n;
    }
    while (done < length) {
        n = write(sock, out + done, length - done);
        if (n < 0)
            err(1, "the socket");
        done += n;
    }
}

static void to_tap(int sock, int tap)
{
    size_t at = 0;
    uint32_t size;
    ssize_t n = read(sock, in + kept, ROOM - kept);

    if (n <= 0)
        exit(0);
    kept += n;
    for (; kept - at >= HEAD; at += HEAD + size) {
        memcpy(&size, in + at, HEAD);
        size = ntohl(size);
        if (size > FRAME)
            errx(1, "a frame of %u bytes", size);
        if (kept - at < HEAD + size)
            break;
        if (write(tap, in + at + HEAD, size) < 0 && errno != EIO)
            warn("the TAP"); // EIO: it is down
    }
    memmove(in, in + at, kept -= at);
}

int main(int argc, char **argv)
{
    if (argc != 3)
        errx(2, "usage: relay DEVICE FD");
    int tap = open_tap(argv[1]), sock = atoi(argv[2]);
    struct pollfd both[] = {{.fd = tap, .events = POLLIN}, {.fd = sock, .events = POLLIN}};

    if (fcntl(sock, F_SETFL, fcntl(sock, F_GETFL) & ~O_NONBLOCK))
        err(1, "fcntl");
    puts("ready");
    fflush(stdout);
    for (;;) {
        if (poll(both, 2, -1) < 0)
            err(1, "poll");
        if (both[1].revents)
            to_tap(sock, tap);
        if (both[0].revents & POLLIN)
            to_socket(tap, sock);
    }
}
