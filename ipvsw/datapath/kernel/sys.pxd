"""The kernel's and libc's side of the data plane, from their own headers; and the few machine words
that Cython has no spelling for."""

from libc.stdint cimport int32_t, uint8_t, uint16_t, uint32_t, uint64_t


cdef extern from *:
    """
    #include <fcntl.h>
    #include <sched.h>
    #include <sys/mman.h>
    #include <time.h>
    #include <linux/if_packet.h>
    #include <linux/virtio_net.h>
    #include <stddef.h>
    #include <stdint.h>

    _Static_assert(sizeof(struct virtio_net_hdr) == 10, "frames carry the 10-byte header end to end");

    _Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "MACs are kept as the low six bytes of a word");

    /* gcc can't know what the pointer is any more, and leaves the function out of its caller. */
    #define ipvsw_apart(f) ({ __typeof__(&*(f)) ipvsw_f = (f); __asm__ ("" : "+r" (ipvsw_f)); ipvsw_f; })
    static inline uint16_t ipvsw_be16(const uint8_t *p)
    { uint16_t v; __builtin_memcpy(&v, p, 2); return __builtin_bswap16(v); }
    static inline uint32_t ipvsw_be32(const uint8_t *p)
    { uint32_t v; __builtin_memcpy(&v, p, 4); return __builtin_bswap32(v); }
    static inline uint64_t ipvsw_raw64(const uint8_t *p) { uint64_t v; __builtin_memcpy(&v, p, 8); return v; }
    static inline uint64_t ipvsw_mac48(const uint8_t *p)
    { uint32_t hi; uint16_t lo; __builtin_memcpy(&hi, p, 4); __builtin_memcpy(&lo, p + 4, 2);
      return (uint64_t)hi | (uint64_t)lo << 32; }
    static inline uint64_t ipvsw_mix(uint64_t a, uint64_t b)
    { __uint128_t m = (__uint128_t)a * b; return (uint64_t)m ^ (uint64_t)(m >> 64); }

    /* gcc takes a function that does nothing but this for one without effect, and leaves its calls out. */
    #define ipvsw_prefetch(p) do { __builtin_prefetch(p); __asm__ volatile (""); } while (0)

    #define ipvsw_load(p) __atomic_load_n((p), __ATOMIC_ACQUIRE)
    #define ipvsw_store(p, v) __atomic_store_n((p), (v), __ATOMIC_RELEASE)
    #define ipvsw_add(p, v) __atomic_add_fetch((p), (v), __ATOMIC_ACQ_REL)
    #define ipvsw_or(p, v) __atomic_fetch_or((p), (v), __ATOMIC_ACQ_REL)
    #define ipvsw_take(p) __atomic_exchange_n((p), 0, __ATOMIC_ACQ_REL)
    #define ipvsw_fence_release() __atomic_thread_fence(__ATOMIC_RELEASE)
    #define ipvsw_exchange(p, was, v) \
        __atomic_compare_exchange_n((p), (was), (v), 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE)
    """
    bint unlikely(bint condition) noexcept nogil  # Cython's: what follows is kept out of the way of the rest

    cdef struct virtio_net_hdr:
        uint8_t flags
        uint8_t gso_type
        uint16_t hdr_len
        uint16_t gso_size
        uint16_t csum_start
        uint16_t csum_offset

    cdef struct tpacket_auxdata:
        uint32_t tp_status
        uint16_t tp_vlan_tci
        uint16_t tp_vlan_tpid

    cdef struct tpacket2_hdr:
        uint32_t tp_status
        uint32_t tp_len
        uint32_t tp_snaplen
        uint16_t tp_mac
        uint16_t tp_vlan_tci
        uint16_t tp_vlan_tpid

    enum: VIRTIO_NET_HDR_F_NEEDS_CSUM
    enum: VIRTIO_NET_HDR_F_DATA_VALID
    enum: VIRTIO_NET_HDR_GSO_NONE
    enum: TP_STATUS_KERNEL
    enum: TP_STATUS_USER
    enum: TP_STATUS_COPY
    enum: TP_STATUS_AVAILABLE
    enum: TP_STATUS_SEND_REQUEST
    enum: TP_STATUS_SENDING
    enum: TP_STATUS_WRONG_FORMAT
    enum: TP_STATUS_VLAN_VALID
    enum: TP_STATUS_VLAN_TPID_VALID
    enum: PACKET_AUXDATA

    # Big-endian reads of unaligned memory. A MAC as 48 bits in memory order: only for comparing.
    uint16_t be16 "ipvsw_be16"(const uint8_t *p) noexcept nogil
    uint32_t be32 "ipvsw_be32"(const uint8_t *p) noexcept nogil
    uint64_t raw64 "ipvsw_raw64"(const uint8_t *p) noexcept nogil
    uint64_t mac48 "ipvsw_mac48"(const uint8_t *p) noexcept nogil
    uint64_t mix "ipvsw_mix"(uint64_t a, uint64_t b) noexcept nogil

    void prefetch "ipvsw_prefetch"(const void *p) noexcept nogil  # any address will do

    int sched_yield() noexcept nogil
    enum: CLOCK_MONOTONIC
    enum: CLOCK_REALTIME
    cdef struct timespec:
        long tv_sec
        long tv_nsec
    int clock_gettime(int clock, timespec *now) noexcept nogil

    # Between the control thread and the workers.
    void *load_ptr "ipvsw_load"(void **p) noexcept nogil
    void store_ptr "ipvsw_store"(void **p, void *v) noexcept nogil
    uint64_t load_u64 "ipvsw_load"(uint64_t *p) noexcept nogil
    void store_u64 "ipvsw_store"(uint64_t *p, uint64_t v) noexcept nogil
    uint32_t load_u32 "ipvsw_load"(uint32_t *p) noexcept nogil
    void store_u32 "ipvsw_store"(uint32_t *p, uint32_t v) noexcept nogil
    int32_t load_i32 "ipvsw_load"(int32_t *p) noexcept nogil
    int32_t add_i32 "ipvsw_add"(int32_t *p, int32_t v) noexcept nogil
    uint32_t or_u32 "ipvsw_or"(uint32_t *p, uint32_t v) noexcept nogil
    uint32_t take_u32 "ipvsw_take"(uint32_t *p) noexcept nogil
    void store_u16 "ipvsw_store"(uint16_t *p, uint16_t v) noexcept nogil
    uint64_t or_u64 "ipvsw_or"(uint64_t *p, uint64_t v) noexcept nogil
    uint64_t take_u64 "ipvsw_take"(uint64_t *p) noexcept nogil
    void fence_release "ipvsw_fence_release"() noexcept nogil  # what was stored is seen before what will be
    # If *p is *was it becomes v; else *was becomes *p, and it is false.
    bint exchange_u64 "ipvsw_exchange"(uint64_t *p, uint64_t *was, uint64_t v) noexcept nogil

    # Memory with a descriptor.
    enum: MFD_CLOEXEC
    enum: MFD_ALLOW_SEALING
    enum: F_ADD_SEALS
    enum: F_SEAL_SEAL
    enum: F_SEAL_SHRINK
    enum: F_SEAL_GROW
    enum: F_SEAL_FUTURE_WRITE
    int memfd_create(const char *name, unsigned int flags) noexcept nogil
    int fcntl(int fd, int command, ...) noexcept nogil

cdef extern from "pthread.h" nogil:
    ctypedef struct pthread_mutex_t:
        pass
    int pthread_mutex_init(pthread_mutex_t *mutex, const void *attributes)
    int pthread_mutex_destroy(pthread_mutex_t *mutex)
    int pthread_mutex_lock(pthread_mutex_t *mutex)
    int pthread_mutex_unlock(pthread_mutex_t *mutex)

cdef extern from "sys/epoll.h" nogil:
    enum: EPOLLERR
    enum: EPOLLIN
    enum: EPOLLOUT
    enum: EPOLL_CTL_ADD
    enum: EPOLL_CTL_DEL
    enum: EPOLL_CTL_MOD
    enum: EPOLL_CLOEXEC
    ctypedef union epoll_data_t:
        uint64_t u64
    cdef struct epoll_event:
        uint32_t events
        epoll_data_t data
    int epoll_create1(int flags)
    int epoll_ctl(int epfd, int op, int fd, epoll_event *event)
    int epoll_wait(int epfd, epoll_event *events, int maxevents, int timeout)

cdef extern from "sys/eventfd.h" nogil:
    enum: EFD_CLOEXEC
    enum: EFD_NONBLOCK
    int eventfd(unsigned int initval, int flags)
    int eventfd_read(int fd, uint64_t *value)
    int eventfd_write(int fd, uint64_t value)

cdef extern from "sys/uio.h" nogil:
    cdef struct iovec:
        void *iov_base
        size_t iov_len
    ssize_t writev(int fd, const iovec *pieces, int count)

cdef extern from "netinet/in.h" nogil:
    enum: AF_INET
    enum: AF_INET6
    enum: IPPROTO_IP
    enum: IPPROTO_IPV6
    enum: IP_PKTINFO
    enum: IPV6_PKTINFO
    cdef struct in_addr:
        uint32_t s_addr
    cdef struct in6_addr:
        uint8_t s6_addr[16]
    cdef struct sockaddr_in:
        uint16_t sin_family
        in_addr sin_addr
    cdef struct sockaddr_in6:
        uint16_t sin6_family
        in6_addr sin6_addr
        uint32_t sin6_scope_id
    cdef struct in_pktinfo:
        int ipi_ifindex
        in_addr ipi_spec_dst
    cdef struct in6_pktinfo:
        in6_addr ipi6_addr
        unsigned int ipi6_ifindex

cdef extern from "sys/socket.h" nogil:
    enum: SOL_PACKET
    enum: MSG_DONTWAIT
    enum: MSG_NOSIGNAL
    enum: MSG_TRUNC
    enum: SHUT_RDWR
    cdef struct msghdr:
        void *msg_name
        unsigned int msg_namelen
        iovec *msg_iov
        size_t msg_iovlen
        void *msg_control
        size_t msg_controllen
        int msg_flags
    cdef struct cmsghdr:
        size_t cmsg_len
        int cmsg_level
        int cmsg_type
    cdef struct mmsghdr:
        msghdr msg_hdr
        unsigned int msg_len
    ssize_t sendmsg(int fd, const msghdr *message, int flags)
    ssize_t send(int fd, const void *data, size_t length, int flags)
    ssize_t recv(int fd, void *data, size_t length, int flags)
    int shutdown(int fd, int how)
    ssize_t recvmsg(int fd, msghdr *message, int flags)
    int sendmmsg(int fd, mmsghdr *messages, unsigned int count, int flags)
    cmsghdr *CMSG_FIRSTHDR(msghdr *message)
    uint8_t *CMSG_DATA(cmsghdr *control)
    size_t CMSG_SPACE(size_t length)
    size_t CMSG_LEN(size_t length)
