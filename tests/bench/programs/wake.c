// SPDX-License-Identifier: Apache-2.0
// What it costs to wake a thread on another CPU: wake CPU OTHER-CPU TIMES-A-SECOND SECONDS
//
// A thread on the first CPU sleeps by the clock and wakes at this pace, and then another one on the second CPU, which
// goes to sleep again; with OTHER-CPU -1 nobody. Prints how often. Who starts it looks at what the machine has done.

#define _GNU_SOURCE
#include <err.h>
#include <pthread.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

static int bell;

static void stay_on(int cpu)
{
    cpu_set_t set;

    CPU_ZERO(&set);
    CPU_SET(cpu, &set);
    if (sched_setaffinity(0, sizeof set, &set))
        err(1, "CPU %d", cpu);
}

static void *sleeper(void *cpu)
{
    uint64_t value;

    stay_on(*(int *)cpu);
    while (read(bell, &value, sizeof value) == sizeof value)
        ;
    return NULL;
}

int main(int argc, char **argv)
{
    if (argc != 5)
        errx(2, "usage: wake CPU OTHER-CPU TIMES-A-SECOND SECONDS");
    int other = atoi(argv[2]);
    long gap = 1e9 / atof(argv[3]), times = atof(argv[3]) * atof(argv[4]);
    uint64_t one = 1;
    pthread_t thread;
    struct timespec next;

    bell = eventfd(0, EFD_CLOEXEC);
    if (bell < 0)
        err(1, "eventfd");
    if (other >= 0 && pthread_create(&thread, NULL, sleeper, &other))
        errx(1, "no thread");
    stay_on(atoi(argv[1]));
    clock_gettime(CLOCK_MONOTONIC, &next);
    for (long i = 0; i < times; i++) {
        if (other >= 0 && write(bell, &one, sizeof one) < 0)
            err(1, "eventfd");
        next.tv_nsec += gap;
        next.tv_sec += next.tv_nsec / 1000000000;
        next.tv_nsec %= 1000000000;
        clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &next, NULL);
    }
    printf("%ld\n", times);
    return 0; // and the other thread with it
}
