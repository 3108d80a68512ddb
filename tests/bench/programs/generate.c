// SPDX-License-Identifier: Apache-2.0
// Sends UDP frames from a device, past its queueing discipline.
//
// generate [-s SIZE] [-n DESTINATIONS] [-b BURST] DEVICE DESTINATION-MAC SOURCE-IP DESTINATION-IP FRAMES-PER-SECOND SECONDS
//
// SIZE counts bytes without the FCS (60, the default, is 64 on a real wire). In bursts of BURST (32, which is also the
// most) at a steady pace, or smaller ones where these take longer than 10 ms; with 0 frames a second, flat out. The source MAC is the device's. With
// DESTINATIONS the frames go by turns to that many addresses, from DESTINATION-IP upwards. The payload begins with the
// frame's number, 32 bits; every checksum is right. Prints the number of frames that the device took.

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
#include <unistd.h>

enum { BURST = 32, LONGEST = 9014, UDP_PORT = 9, IP = 14, UDP = 34, PAYLOAD = 42, SHORTEST = PAYLOAD + 4 };

// What the checksums are made of that is the same in every frame.
static unsigned ip_base, udp_base;

static void put(unsigned char *at, unsigned value)
{
    at[0] = value >> 8;
    at[1] = value;
}

static unsigned sum(const unsigned char *data, int size, unsigned value)
{
    for (int i = 0; i < size; i++)
        value += i & 1 ? data[i] : data[i] << 8;
    return value;
}

static unsigned folded(unsigned value)
{
    while (value >> 16)
        value = (value & 0xffff) + (value >> 16);
    return ~value & 0xffff;
}

// The frame with everything but its destination, its number and its checksums; what is fixed of these is kept.
static void prepare(unsigned char *frame, int size)
{
    frame[12] = 8;
    frame[IP] = 0x45;
    frame[IP + 6] = 0x40; // don't fragment, as UDP sockets have it
    frame[IP + 8] = 64;
    frame[IP + 9] = IPPROTO_UDP;
    put(frame + IP + 2, size - IP);
    put(frame + UDP, UDP_PORT);
    put(frame + UDP + 2, UDP_PORT);
    put(frame + UDP + 4, size - UDP);
    for (int i = SHORTEST; i < size; i++)
        frame[i] = i;
    ip_base = sum(frame + IP, 20, 0);
    udp_base = sum(frame + IP + 12, size - IP - 12, IPPROTO_UDP + size - UDP);
}

static void finish(unsigned char *frame, unsigned destination, unsigned number)
{
    unsigned to = (destination >> 16) + (destination & 0xffff);
    unsigned checksum = folded(udp_base + to + (number >> 16) + (number & 0xffff));

    put(frame + IP + 16, destination >> 16);
    put(frame + IP + 18, destination);
    put(frame + IP + 10, folded(ip_base + to));
    put(frame + PAYLOAD, number >> 16);
    put(frame + PAYLOAD + 2, number);
    put(frame + UDP + 6, checksum ? checksum : 0xffff);
}

static void later(struct timespec *when, double seconds)
{
    double sum = when->tv_nsec / 1e9 + seconds;

    when->tv_sec += (time_t)sum;
    when->tv_nsec = (long)((sum - (time_t)sum) * 1e9);
}

int main(int argc, char **argv)
{
    static unsigned char frames[BURST][LONGEST];
    struct iovec parts[BURST];
    struct mmsghdr messages[BURST];
    struct in_addr first;
    struct ifreq request = {0};
    int sock = socket(AF_PACKET, SOCK_RAW, 0), one = 1, size = 60, most = BURST, option;
    unsigned destinations = 1, number = 0;
    unsigned char *model = frames[0];

    while ((option = getopt(argc, argv, "s:n:b:")) != -1) {
        if (option == 's')
            size = atoi(optarg);
        else if (option == 'n')
            destinations = strtoul(optarg, NULL, 10);
        else if (option == 'b')
            most = atoi(optarg);
        else
            return 2;
    }
    argv += optind - 1;
    if (argc - optind != 6 || size < SHORTEST || size > LONGEST || !destinations || most < 1 || most > BURST)
        errx(2, "usage: generate [-s SIZE] [-n DESTINATIONS] [-b BURST] DEVICE MAC SOURCE DESTINATION RATE SECONDS");
    strncpy(request.ifr_name, argv[1], IFNAMSIZ - 1);
    if (sock < 0 || ioctl(sock, SIOCGIFHWADDR, &request))
        err(1, "%s", argv[1]);
    if (sscanf(argv[2], "%hhx:%hhx:%hhx:%hhx:%hhx:%hhx", model, model + 1, model + 2, model + 3, model + 4,
               model + 5) != 6)
        errx(2, "%s: not a MAC address", argv[2]);
    memcpy(model + 6, request.ifr_hwaddr.sa_data, 6);
    if (inet_pton(AF_INET, argv[3], model + IP + 12) != 1 || inet_pton(AF_INET, argv[4], &first) != 1)
        errx(2, "not an IPv4 address");
    prepare(model, size);

    struct sockaddr_ll where = {.sll_family = AF_PACKET, .sll_ifindex = if_nametoindex(argv[1])};
    if (bind(sock, (struct sockaddr *)&where, sizeof where))
        err(1, "bind");
    if (setsockopt(sock, SOL_PACKET, PACKET_QDISC_BYPASS, &one, sizeof one))
        err(1, "PACKET_QDISC_BYPASS");
    memset(messages, 0, sizeof messages);
    for (int i = 0; i < BURST; i++) {
        if (i)
            memcpy(frames[i], model, size);
        parts[i] = (struct iovec){frames[i], size};
        messages[i].msg_hdr.msg_iov = &parts[i];
        messages[i].msg_hdr.msg_iovlen = 1;
    }

    double rate = atof(argv[5]), seconds = atof(argv[6]);
    int burst = rate > 0 && rate * 0.01 < most ? (int)(rate * 0.01) : most;
    long long sent = 0;
    struct timespec next, now, end;
    if (!burst)
        burst = 1;
    clock_gettime(CLOCK_MONOTONIC, &next);
    end = next;
    later(&end, seconds);
    do {
        for (int i = 0; i < burst; i++, number++)
            finish(frames[i], ntohl(first.s_addr) + number % destinations, number);
        int count = sendmmsg(sock, messages, burst, 0);

        if (count > 0)
            sent += count;
        if (rate > 0) {
            later(&next, burst / rate);
            clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &next, NULL);
        }
        clock_gettime(CLOCK_MONOTONIC, &now);
    } while (now.tv_sec < end.tv_sec || (now.tv_sec == end.tv_sec && now.tv_nsec < end.tv_nsec));
    printf("%lld\n", sent);
    return 0;
}
