// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* Packets the kernel frees because it dropped them: all counted by reason, a budget of them looked at closely. */
#include "common/near.h"
#include "common/net.h"
#include "common/sample.h"

KERNEL_STRUCT(sk_buff, dev, head, network_header, len, protocol)
KERNEL_STRUCT(net_device, name)
KERNEL_ENUM(skb_drop_reason, SKB_DROP_REASON_NOT_SPECIFIED)
SETTING(drop_samples_per_second, 1000)

NEAR(packet_drop_count)
MAP(PERCPU_ARRAY, packet_drop_sampler, u32, struct sampler, 1)

struct ipv4 {
	u8 version_words, service;
	u16 length, id, fragment;
	u8 hops, protocol;
	u16 checksum;
	u8 source[4], destination[4];
};
struct ipv6 {
	u8 version, flow[3];
	u16 length;
	u8 protocol, hops;
	u8 source[16], destination[16];
};
struct ports {
	u16 source, destination;
	u8 rest[9], tcp_flags;
};
struct extension { /* of IPv6; a fragment's has its place where others have their length's */
	u8 next, words;
	u16 fragment;
};
struct tag {
	u16 control, ethertype;
};
#define FRAGMENT_OFFSET 0x1fff
#define FRAGMENT_OFFSET6 0xfff8
#define TAGS 2
#define EXTENSIONS 6 /* that are followed; no ordinary packet has more */
enum { HOP_BY_HOP = 0, ROUTING = 43, FRAGMENT = 44, AUTHENTICATION = 51, DESTINATION = 60, MOBILITY = 135 };

static __always_inline void look_at_ports(struct packet_drop_event *event, void *place)
{
	struct ports ports = {};
	if (event->protocol != PROTOCOL_TCP && event->protocol != PROTOCOL_UDP)
		return;
	u32 size = event->protocol == PROTOCOL_TCP ? sizeof(ports) : 4;
	bpf_probe_read_kernel(&ports, size, place);
	event->source_port = from_wire16(ports.source);
	event->destination_port = from_wire16(ports.destination);
	event->tcp_flags = ports.tcp_flags;
}

/* To what the extension headers of IPv6 precede; NULL where that is in another fragment. */
static __always_inline void *behind_extensions(struct packet_drop_event *event, void *place)
{
	for (u32 number = 0; number < EXTENSIONS; number++) {
		struct extension header;
		u32 kind = event->protocol;
		if (kind != HOP_BY_HOP && kind != ROUTING && kind != FRAGMENT && kind != AUTHENTICATION &&
		    kind != DESTINATION && kind != MOBILITY)
			break;
		if (bpf_probe_read_kernel(&header, sizeof(header), place))
			return NULL;
		event->protocol = header.next;
		if (kind == FRAGMENT && (from_wire16(header.fragment) & FRAGMENT_OFFSET6))
			return NULL;
		place += kind == FRAGMENT ? 8 : kind == AUTHENTICATION ? header.words * 4 + 8 : header.words * 8 + 8;
	}
	return place;
}

/* VLAN tags that no device has taken off stand before the packet. */
static __always_inline void *behind_tags(struct packet_drop_event *event, void *place)
{
	for (u32 number = 0; number < TAGS; number++) {
		struct tag tag;
		if (event->ethertype != ETHERTYPE_VLAN && event->ethertype != ETHERTYPE_SERVICE_VLAN)
			break;
		if (bpf_probe_read_kernel(&tag, sizeof(tag), place))
			break;
		event->ethertype = from_wire16(tag.ethertype);
		place += sizeof(tag);
	}
	return place;
}

static __always_inline void look_at_ip(struct packet_drop_event *event, void *place)
{
	if (event->ethertype == ETHERTYPE_IPV4) {
		struct ipv4 ip;
		if (bpf_probe_read_kernel(&ip, sizeof(ip), place) || ip.version_words >> 4 != 4)
			return;
		event->protocol = ip.protocol;
		map_ipv4(event->source_address, ip.source);
		map_ipv4(event->destination_address, ip.destination);
		if (!(from_wire16(ip.fragment) & FRAGMENT_OFFSET))
			look_at_ports(event, place + (ip.version_words & 15) * 4);
	} else if (event->ethertype == ETHERTYPE_IPV6) {
		struct ipv6 ip;
		if (bpf_probe_read_kernel(&ip, sizeof(ip), place) || ip.version >> 4 != 6)
			return;
		event->protocol = ip.protocol;
		__builtin_memcpy(event->source_address, ip.source, 16);
		__builtin_memcpy(event->destination_address, ip.destination, 16);
		place = behind_extensions(event, place + sizeof(ip));
		if (place)
			look_at_ports(event, place);
	}
}

/* Where a packet is in a queue sorted by sequence number, the kernel keeps something else in `dev`. */
static __always_inline void look_at_device(struct packet_drop_event *event, struct sk_buff *packet)
{
	bpf_probe_read_kernel_str(event->interface, sizeof(event->interface), packet->dev->name);
	if (event->interface[0] <= ' ' || event->interface[0] > '~')
		__builtin_memset(event->interface, 0, sizeof(event->interface));
}

static __always_inline void look_at(struct sk_buff *packet, u64 now, u64 location, u32 reason, u32 weight)
{
	struct packet_drop_event *event = packet_drop_reserve();
	if (!event)
		return;
	__builtin_memset(event, 0, sizeof(*event));
	event->ts = now;
	event->reason = reason;
	event->location = location;
	event->ethertype = from_wire16(packet->protocol);
	event->length = packet->len;
	event->weight = weight;
	look_at_device(event, packet);
	look_at_ip(event, behind_tags(event, packet->head + packet->network_header));
	packet_drop_submit(event);
}

TP_BTF(kfree_skb)
{
	struct sk_buff *packet = (void *)ARG(kfree_skb, skb);
	u32 reason = ARG(kfree_skb, reason);
	if (reason < SKB_DROP_REASON_NOT_SPECIFIED)
		return 0; /* not dropped, or consumed */
	struct packet_drop_count_key key = {.reason = reason};
	struct packet_drop_count_value *value = packet_drop_count_near_slot(&key);
	if (value) {
		value->packets++;
		value->bytes += packet->len;
	}
	u32 zero = 0;
	struct sampler *sampler = bpf_map_lookup_elem(map(packet_drop_sampler), &zero);
	u64 now = bpf_ktime_get_ns(), budget = setting(drop_samples_per_second) / POSSIBLE_CPUS;
	u32 weight = sampler ? sample(sampler, budget ? budget : 1, now) : 0;
	if (weight)
		look_at(packet, now, ARG(kfree_skb, location), reason, weight);
	else
		packet_drop_sampled_out();
	return 0;
}
