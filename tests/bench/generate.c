// SPDX-License-Identifier: Apache-2.0
// Sends 60-byte UDP frames (64 on a real wire, with the FCS) from a device.
//
// generate DEVICE DESTINATION-MAC SOURCE-IP DESTINATION-IP FRAMES-PER-SECOND SECONDS [DESTINATIONS]
//
// In bursts of 32 at a steady pace; with 0 frames a second, flat out. The source MAC is the device's. With
// DESTINATIONS the frames go by turns to that many addresses, from DESTINATION-IP upwards.
// Prints the number of frames that the device took.

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <err.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <net/if.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <time.h>

enum { BURST = 32, SIZE = 60, UDP_PORT = 9 };

static unsigned sum(const unsigned char *data, int size, unsigned value)
{
    for (int i = 0; i < size; i += 2)
        value += data[i] << 8 | data[i + 1];
    while (value >> 16)
        value = (value & 0xffff) + (value >> 16);
    return value;
}

static void put(unsigned char *at, unsigned value)
{
    at[0] = value >> 8;
    at[1] = value;
}

static void address(unsigned char *frame, in_addr_t destination)
{
    destination = htonl(destination);
    memcpy(frame + 30, &destination, 4);
    put(frame + 24, 0);
    put(frame + 24, ~sum(frame + 14, 20, 0));
    put(frame + 40, 0);
    put(frame + 40, ~sum(frame + 26, SIZE - 26, IPPROTO_UDP + SIZE - 34));
}

int main(int argc, char **argv)
{
    unsigned char frame[SIZE] = {[12] = 8, [14] = 0x45, [22] = 64, [23] = IPPROTO_UDP};
    unsigned char frames[BURST][SIZE];
    struct iovec parts[BURST];
    struct mmsghdr burst[BURST];
    struct in_addr first;
    struct ifreq request = {0};
    int sock = socket(AF_PACKET, SOCK_RAW, 0), one = 1;
    long long sent = 0, turn = 0;

    if (argc != 7 && argc != 8)
        errx(2, "usage: generate DEVICE MAC SOURCE DESTINATION RATE SECONDS [DESTINATIONS]");
    strncpy(request.ifr_name, argv[1], IFNAMSIZ - 1);
    if (sock < 0 || ioctl(sock, SIOCGIFHWADDR, &request))
        err(1, "%s", argv[1]);
    if (sscanf(argv[2], "%hhx:%hhx:%hhx:%hhx:%hhx:%hhx", frame, frame + 1, frame + 2, frame + 3, frame + 4,
               frame + 5) != 6)
        errx(2, "%s: not a MAC address", argv[2]);
    memcpy(frame + 6, request.ifr_hwaddr.sa_data, 6);
    put(frame + 16, SIZE - 14);
    if (inet_pton(AF_INET, argv[3], frame + 26) != 1 || inet_pton(AF_INET, argv[4], &first) != 1)
        errx(2, "not an IPv4 address");
    put(frame + 34, UDP_PORT);
    put(frame + 36, UDP_PORT);
    put(frame + 38, SIZE - 34);
    address(frame, ntohl(first.s_addr));

    struct sockaddr_ll where = {.sll_family = AF_PACKET, .sll_ifindex = if_nametoindex(argv[1])};
    if (bind(sock, (struct sockaddr *)&where, sizeof where))
        err(1, "bind");
    if (setsockopt(sock, SOL_PACKET, PACKET_QDISC_BYPASS, &one, sizeof one))
        err(1, "PACKET_QDISC_BYPASS");
    memset(burst, 0, sizeof burst);
    for (int i = 0; i < BURST; i++) {
        memcpy(frames[i], frame, SIZE);
        parts[i] = (struct iovec){frames[i], SIZE};
        burst[i].msg_hdr.msg_iov = &parts[i];
        burst[i].msg_hdr.msg_iovlen = 1;
    }

    double rate = atof(argv[5]), seconds = atof(argv[6]);
    int destinations = argc == 8 ? atoi(argv[7]) : 1;
    struct timespec next, now;
    clock_gettime(CLOCK_MONOTONIC, &next);
    double end = next.tv_sec + next.tv_nsec / 1e9 + seconds;
    do {
        for (int i = 0; destinations > 1 && i < BURST; i++)
            address(frames[i], ntohl(first.s_addr) + turn++ % destinations);
        int count = sendmmsg(sock, burst, BURST, 0);

        if (count > 0)
            sent += count;
        if (rate > 0) {
            next.tv_nsec += (long)(BURST / rate * 1e9);
            for (; next.tv_nsec >= 1000000000; next.tv_nsec -= 1000000000)
                next.tv_sec++;
            clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &next, NULL);
        }
        clock_gettime(CLOCK_MONOTONIC, &now);
    } while (now.tv_sec + now.tv_nsec / 1e9 < end);
    printf("%lld\n", sent);
    return 0;
}
