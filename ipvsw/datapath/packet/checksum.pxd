"""Checksums over bytes: the internet's (RFC 1071) and SCTP's CRC32c (RFC 9260 appendix A)."""

from libc.stdint cimport uint8_t, uint32_t


cdef extern from *:
    """
    /* The one's complement sum (RFC 1071) of big-endian 16-bit words, folded to 16 bits; an odd last byte is padded
       with 0. Added up in the machine's own order, 8 bytes at a time: that only swaps the bytes of the sum. */
    static inline uint32_t ipvsw_ones_sum(const uint8_t *p, size_t n)
    {
        unsigned long long total = 0, carries = 0, w;
        for (; n >= 8; p += 8, n -= 8) {
            __builtin_memcpy(&w, p, 8);
            carries += __builtin_add_overflow(total, w, &total);
        }
        if (n) {
            w = 0;
            __builtin_memcpy(&w, p, n);
            carries += __builtin_add_overflow(total, w, &total);
        }
        total = (total & 0xFFFFFFFF) + (total >> 32) + carries;
        total = (total & 0xFFFF) + (total >> 16 & 0xFFFF) + (total >> 32);
        total = (total & 0xFFFF) + (total >> 16);
        total = (total & 0xFFFF) + (total >> 16);
        return __builtin_bswap16((uint16_t)total);
    }

    /* Eight bytes a step: table k has what a byte does to the sum k bytes later. */
    static uint32_t ipvsw_crc_tables[8][256];

    __attribute__((constructor)) static void ipvsw_crc_prepare(void)
    {
        for (uint32_t i = 0; i < 256; i++) {
            uint32_t c = i;
            for (int bit = 0; bit < 8; bit++)
                c = c >> 1 ^ (c & 1 ? 0x82F63B78u : 0);  /* the polynomial, least significant bit first */
            ipvsw_crc_tables[0][i] = c;
        }
        for (int k = 1; k < 8; k++)
            for (uint32_t i = 0; i < 256; i++) {
                uint32_t c = ipvsw_crc_tables[k - 1][i];
                ipvsw_crc_tables[k][i] = c >> 8 ^ ipvsw_crc_tables[0][c & 0xFF];
            }
    }

    static inline uint32_t ipvsw_crc32c(uint32_t c, const uint8_t *p, size_t n)
    {
        for (; n >= 8; p += 8, n -= 8) {
            uint32_t a, b;
            __builtin_memcpy(&a, p, 4);
            __builtin_memcpy(&b, p + 4, 4);
            a ^= c;
            c = ipvsw_crc_tables[7][a & 0xFF] ^ ipvsw_crc_tables[6][a >> 8 & 0xFF] ^
                ipvsw_crc_tables[5][a >> 16 & 0xFF] ^ ipvsw_crc_tables[4][a >> 24] ^
                ipvsw_crc_tables[3][b & 0xFF] ^ ipvsw_crc_tables[2][b >> 8 & 0xFF] ^
                ipvsw_crc_tables[1][b >> 16 & 0xFF] ^ ipvsw_crc_tables[0][b >> 24];
        }
        while (n--)
            c = c >> 8 ^ ipvsw_crc_tables[0][(c ^ *p++) & 0xFF];
        return c;
    }
    """
    uint32_t ones_sum "ipvsw_ones_sum"(const uint8_t *p, size_t n) noexcept nogil
    # Of the bytes before (0xFFFFFFFF: none), continued; inverted when all are in.
    uint32_t crc32c "ipvsw_crc32c"(uint32_t before, const uint8_t *p, size_t n) noexcept nogil


cdef inline void put_crc32c(uint8_t *p, uint32_t n, uint32_t at) noexcept nogil:
    """Write the checksum of n bytes into four of them, which count as 0; least significant byte first."""
    cdef uint8_t nothing[4]
    cdef uint32_t c
    nothing[0] = nothing[1] = nothing[2] = nothing[3] = 0
    c = ~crc32c(crc32c(crc32c(0xFFFFFFFFu, p, at), nothing, 4), p + at + 4, n - at - 4)
    p[at], p[at + 1], p[at + 2], p[at + 3] = c & 0xFF, c >> 8 & 0xFF, c >> 16 & 0xFF, c >> 24
