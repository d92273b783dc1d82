// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
// Headers on the wire: the parts of Ethernet, IPv4, IPv6, TCP, UDP and ICMP that XDP programs read and write.
#pragma once

#include "common/probe.h"

enum ethertype {
    ETHERTYPE_IPV4 = 0x0800,
    ETHERTYPE_IPV6 = 0x86dd,
    ETHERTYPE_VLAN = 0x8100,
    ETHERTYPE_QINQ = 0x88a8,
};

enum ip_protocol {
    IP_HOP_OPTIONS = 0,
    IP_ICMP = 1,
    IP_IPIP = 4,
    IP_TCP = 6,
    IP_UDP = 17,
    IP_IPV6 = 41,
    IP_ROUTING = 43,
    IP_FRAGMENT = 44,
    IP_AUTH = 51,
    IP_ICMPV6 = 58,
    IP_OPTIONS = 60,
};

enum icmp_type {
    ICMP4_ECHO_REPLY = 0,
    ICMP4_UNREACHABLE = 3,
    ICMP4_ECHO = 8,
    ICMP4_TIME_EXCEEDED = 11,
    ICMP4_PARAMETER = 12,
    ICMP6_UNREACHABLE = 1,
    ICMP6_TOO_BIG = 2,
    ICMP6_TIME_EXCEEDED = 3,
    ICMP6_PARAMETER = 4,
    ICMP6_ECHO = 128,
    ICMP6_ECHO_REPLY = 129,
};

#define ETHERNET_BYTES 14
#define VLAN_BYTES 4
#define MAX_L2_BYTES (ETHERNET_BYTES + 2 * VLAN_BYTES)
#define IPV4_BYTES 20
#define IPV6_BYTES 40
#define UDP_BYTES 8
#define ICMP_BYTES 8

#define IPV4_FRAGMENT_OFFSET 0x1fff
#define IPV4_MORE_FRAGMENTS 0x2000
#define IPV4_DONT_FRAGMENT 0x4000

#define TCP_FIN 0x01
#define TCP_SYN 0x02
#define TCP_RST 0x04
#define TCP_ACK 0x10

struct ipv4 {
    u8 version_length, tos;
    u16 length, id, fragment;
    u8 ttl, protocol;
    u16 checksum;
    u32 source, destination;
};

struct ipv6 {
    u32 version_class_label;
    u16 length; // of what follows this header
    u8 next, hops;
    u8 source[16], destination[16];
};

struct tcp {
    u16 source, destination;
    u32 sequence, acknowledged;
    u8 offset, flags;
    u16 window, checksum, urgent;
};

struct udp {
    u16 source, destination, length, checksum;
};

struct icmp {
    u8 type, code;
    u16 checksum;
    u16 unused, mtu; // IPv6: mtu is all four bytes
};
