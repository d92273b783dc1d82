// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
// What every XDP program of ours needs: byte order, branch hints, checksums. Everything is inlined, so that one
// function is one program.
#pragma once

#include "common/probe.h"

#define INLINE static __always_inline
#define LIKELY(x) __builtin_expect(!!(x), 1)
#define UNLIKELY(x) __builtin_expect(!!(x), 0)

// The compiler knows nothing of a value from here on: for what the verifier must see as it is written.
#define KEEP(value) asm volatile("" : "+r"(value))

#define BE16(x) ((u16)__builtin_bswap16((u16)(x)))
#define BE32(x) ((u32)__builtin_bswap32((u32)(x)))

// A 64-bit sum of 16-bit words, folded; the complement is what a header carries (RFC 1071).
INLINE u16 csum_fold(u64 sum)
{
    sum = (sum & 0xffffffff) + (sum >> 32);
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    return (u16)~sum;
}

// The sum of `size` bytes, a multiple of four, at most 512 on kernels before 6.13, added to `sum`.
INLINE u64 csum_add(u64 sum, const void *from, u32 size)
{
    return (u32)bpf_csum_diff(0, 0, (void *)from, size, (u32)sum);
}

// The verifier wants eight-byte stores to the stack aligned.
#define ALIGNED __attribute__((aligned(8)))

INLINE void copy16(void *to, const void *from)
{
    ((u64 *)to)[0] = ((const u64 *)from)[0];
    ((u64 *)to)[1] = ((const u64 *)from)[1];
}

// The same where `to` lies on a four-byte boundary of the stack.
INLINE void copy16_words(void *to, const void *from)
{
    for (int i = 0; i < 4; i++)
        ((u32 *)to)[i] = ((const u32 *)from)[i];
}
