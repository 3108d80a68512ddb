// SPDX-License-Identifier: Apache-2.0
// The reference for what a frame costs: read() from one TAP, write() to the other, nothing else.
//
// loop NAME1 NAME2: makes both TAPs (virtio_net_hdr and the offloads that ipvswd asks for), says "ready"
// and carries frames until it is killed. Who runs it moves the devices into namespaces.

#include <err.h>
#include <fcntl.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <unistd.h>

#ifndef TUN_F_USO4
#define TUN_F_USO4 0x20
#define TUN_F_USO6 0x40
#endif

enum { BUDGET = 64, FRAME = 1 << 17 };

static int open_tap(const char *name)
{
    struct ifreq request = {.ifr_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR};
    int fd = open("/dev/net/tun", O_RDWR | O_NONBLOCK);

    if (fd < 0)
        err(1, "/dev/net/tun");
    strncpy(request.ifr_name, name, IFNAMSIZ - 1);
    if (ioctl(fd, TUNSETIFF, &request))
        err(1, "%s", name);
    unsigned long offloads = TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6;
    if (ioctl(fd, TUNSETOFFLOAD, offloads | TUN_F_USO4 | TUN_F_USO6) && ioctl(fd, TUNSETOFFLOAD, offloads))
        err(1, "%s: offloads", name);
    return fd;
}

int main(int argc, char **argv)
{
    static char frame[FRAME];
    struct epoll_event ready[2];
    int taps[2], poll = epoll_create1(EPOLL_CLOEXEC);

    if (argc != 3)
        errx(2, "usage: loop NAME1 NAME2");
    for (int i = 0; i < 2; i++) {
        struct epoll_event wanted = {.events = EPOLLIN, .data.u32 = i};

        taps[i] = open_tap(argv[i + 1]);
        if (epoll_ctl(poll, EPOLL_CTL_ADD, taps[i], &wanted))
            err(1, "epoll_ctl");
    }
    puts("ready");
    fflush(stdout);
    for (;;) {
        int count = epoll_wait(poll, ready, 2, -1);

        for (int i = 0; i < count; i++) {
            int from = taps[ready[i].data.u32], to = taps[!ready[i].data.u32];

            for (int budget = BUDGET; budget; budget--) {
                ssize_t size = read(from, frame, sizeof frame);

                if (size <= 0)
                    break;
                if (write(to, frame, size) < 0)
                    continue; // the other device is down: its frame is lost
            }
        }
    }
}
