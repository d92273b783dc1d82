// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* Addresses and protocol numbers, as they stand on the wire. */
#pragma once
#include "common/probe.h"

enum { IPV4 = 2, IPV6 = 10 };                               /* AF_INET, AF_INET6 */
enum { ETHERTYPE_IPV4 = 0x0800, ETHERTYPE_IPV6 = 0x86dd, ETHERTYPE_VLAN = 0x8100, ETHERTYPE_SERVICE_VLAN = 0x88a8 };
enum { PROTOCOL_ICMP = 1, PROTOCOL_TCP = 6, PROTOCOL_UDP = 17, PROTOCOL_ICMPV6 = 58 };

/* Bytes as they came off the wire, to the host's order. */
#define from_wire16(value) __builtin_bswap16(value)

/* ::ffff:a.b.c.d; `to` has 16 bytes. */
static __always_inline void map_ipv4(u8 *to, const void *from)
{
	__builtin_memset(to, 0, 10);
	to[10] = to[11] = 0xff;
	__builtin_memcpy(to + 12, from, 4);
}
