// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* How connections fare on their way: round-trip times, segments sent again, resets; datagrams without room. */
#include "common/gap.h"
#include "common/near.h"
#include "common/sock.h"

KERNEL_STRUCT(tcp_sock, srtt_us, snd_una, mss_cache, inet_conn.icsk_inet.inet_sport)
KERNEL_STRUCT(sk_buff, data, len, cb, head, network_header, transport_header)
KERNEL_STRUCT(tcp_skb_cb, tcp_gso_segs)
KERNEL_STRUCT(request_sock, __req_common.skc_family, __req_common.skc_daddr, __req_common.skc_v6_daddr)
KERNEL_ENUM(TCP_ESTABLISHED, TCP_SYN_RECV)

#define SAMPLED_ONE_IN 8 /* of segments that arrive */

#define ACKNOWLEDGED 8 /* byte of the TCP header where the acknowledgement is */
#define WINDOW (1U << 30) /* bytes: more than can be under way */

GAP(tcp_rtt_gap)
NEAR(tcp_rtt)

enum { SENT, RECEIVED }; /* tcp_reset.direction */

/* How many of our segments with data an arriving segment says have arrived: it is not yet processed. */
static __always_inline u32 acknowledged(struct tcp_sock *tcp, struct sk_buff *segment)
{
	u32 upto = 0, mss = tcp->mss_cache;
	bpf_probe_read_kernel(&upto, 4, (u8 *)segment->data + ACKNOWLEDGED);
	u32 bytes = __builtin_bswap32(upto) - tcp->snd_una;
	return mss && bytes < WINDOW ? (bytes + mss - 1) / mss : 0;
}

TP_BTF(tcp_probe)
{
	if (!is_sampled(map(tcp_rtt_gap), SAMPLED_ONE_IN))
		return 0;
	struct sock *sock = (void *)ARG(tcp_probe, sk);
	struct tcp_sock *tcp = bpf_skc_to_tcp_sock(sock);
	if (!tcp)
		return 0;
	u32 srtt_us = tcp->srtt_us >> 3;
	struct tcp_rtt_key key = {.cgroup = cgroup_of_socket(sock)};
	remote_address(key.remote_address, sock);
	struct tcp_rtt_value *value = tcp_rtt_near_slot(&key);
	if (!value)
		return 0;
	value->samples++;
	value->count += SAMPLED_ONE_IN;
	value->sum_us += srtt_us;
	value->rtts[log2_bucket(srtt_us, 27)]++;
	value->delivered += (u64)acknowledged(tcp, (void *)ARG(tcp_probe, skb)) * SAMPLED_ONE_IN;
	return 0;
}

static __always_inline void sent_again(struct tcp_retransmit_key *key, u64 segments, u64 bytes)
{
	struct tcp_retransmit_value *value = tcp_retransmit_slot(key);
	if (!value)
		return;
	value->count += segments;
	value->bytes += bytes;
}

TP_BTF(tcp_retransmit_skb)
{
	struct sock *sock = (void *)ARG(tcp_retransmit_skb, sk);
	struct sk_buff *segment = (void *)ARG(tcp_retransmit_skb, skb);
	struct tcp_skb_cb *control = (void *)segment->cb;
	struct tcp_retransmit_key key = {.cgroup = cgroup_of_socket(sock), .state = sock->__sk_common.skc_state};
	remote_address(key.remote_address, sock);
	sent_again(&key, control->tcp_gso_segs, segment->len);
	return 0;
}

/* The answer to an opening, sent again: there is no socket yet but the listening one. */
TP_BTF(tcp_retransmit_synack)
{
	struct request_sock *request = (void *)ARG(tcp_retransmit_synack, req);
	struct tcp_retransmit_key key = {
		.cgroup = cgroup_of_socket((void *)ARG(tcp_retransmit_synack, sk)),
		.state = TCP_SYN_RECV,
	};
	u32 remote = request->__req_common.skc_daddr;
	if (request->__req_common.skc_family == IPV6)
		bpf_probe_read_kernel(key.remote_address, 16, request->__req_common.skc_v6_daddr);
	else
		map_ipv4(key.remote_address, &remote);
	sent_again(&key, 1, 0);
	return 0;
}

static __always_inline int reset(struct tcp_reset_key *key)
{
	struct tcp_reset_value *value = tcp_reset_slot(key);
	if (value)
		value->count++;
	return 0;
}

static __always_inline void ends_of(struct tcp_reset_key *key, struct sock *sock)
{
	struct tcp_sock *tcp = bpf_skc_to_tcp_sock(sock);
	key->cgroup = cgroup_of_socket(sock);
	/* A socket that its owner aborts has given its number back, and keeps the port. */
	key->local_port = tcp ? from_wire16(tcp->inet_conn.icsk_inet.inet_sport) : sock->__sk_common.skc_num;
	remote_address(key->remote_address, sock);
}

/* Whom a segment is from, and to which port. */
static __always_inline void answer_to(struct tcp_reset_key *key, struct sk_buff *segment)
{
	void *ip = segment->head + segment->network_header, *tcp = segment->head + segment->transport_header;
	u8 start = 0, source[4];
	bpf_probe_read_kernel(&start, 1, ip);
	if (start >> 4 == 6) {
		bpf_probe_read_kernel(key->remote_address, 16, ip + 8);
	} else {
		bpf_probe_read_kernel(source, 4, ip + 12);
		map_ipv4(key->remote_address, source);
	}
	u16 port = 0;
	bpf_probe_read_kernel(&port, 2, tcp + 2);
	key->local_port = from_wire16(port);
}

TP_BTF(tcp_send_reset)
{
	struct sock *sock = (void *)ARG(tcp_send_reset, sk);
#if HAS_ARG(tcp_send_reset, skb__nullable)
	struct sk_buff *segment = (void *)ARG(tcp_send_reset, skb__nullable);
#elif HAS_ARG(tcp_send_reset, skb)
	struct sk_buff *segment = (void *)ARG(tcp_send_reset, skb);
#endif
	struct tcp_reset_key key = {.direction = SENT};
#if HAS_ARG(tcp_send_reset, reason)
	key.reason = ARG(tcp_send_reset, reason);
#endif
	if (sock)
		ends_of(&key, sock);
	if (segment)
		answer_to(&key, segment);
	return reset(&key);
}

TP_BTF(tcp_receive_reset)
{
	struct sock *sock = (void *)ARG(tcp_receive_reset, sk);
	struct tcp_reset_key key = {.direction = RECEIVED};
	ends_of(&key, sock);
	return reset(&key);
}

TP_BTF(udp_fail_queue_rcv_skb)
{
	struct sock *sock = (void *)ARG(udp_fail_queue_rcv_skb, sk);
	struct sk_buff *datagram = (void *)ARG(udp_fail_queue_rcv_skb, skb);
	struct udp_error_key key = {
		.cgroup = cgroup_of_socket(sock),
		.local_port = sock->__sk_common.skc_num,
		.error = -(s32)ARG(udp_fail_queue_rcv_skb, rc),
	};
	struct udp_error_value *value = udp_error_slot(&key);
	if (!value)
		return 0;
	value->count++;
	value->bytes += datagram->len;
	return 0;
}
