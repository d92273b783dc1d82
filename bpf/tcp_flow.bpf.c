// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* TCP sockets at their close. All figures are the kernel's own, read from the socket; what it does not keep (when
 * it was opened, by whom) is remembered by socket from connect() or the handshake on.
 */
#include "common/sock.h"

KERNEL_STRUCT(sock, __sk_common.skc_rcv_saddr, __sk_common.skc_v6_rcv_saddr, __sk_common.skc_flags, sk_err)
KERNEL_STRUCT(tcp_sock, inet_conn.icsk_inet.inet_sport, bytes_sent, bytes_retrans, bytes_received, total_retrans,
	      srtt_us)
KERNEL_ENUM(TCP_ESTABLISHED, TCP_ESTABLISHED, TCP_SYN_SENT, TCP_SYN_RECV, TCP_FIN_WAIT1, TCP_CLOSE, TCP_CLOSE_WAIT,
	    TCP_LAST_ACK, TCP_LISTEN)
KERNEL_ENUM(sock_flags, SOCK_DONE)

enum direction { UNKNOWN, CONNECTED, ACCEPTED };
enum ended { FIN, RESET_BY_PEER, RESET_BY_US, TIMEOUT, REFUSED, UNREACHABLE, FAILED };
enum { BROKEN_PIPE = 32, NET_UNREACHABLE = 101, ABORTED = 103, RESET = 104, TIMED_OUT = 110, CONNECTION_REFUSED = 111,
       HOST_UNREACHABLE = 113 }; /* errno, the same on every architecture bpfleet runs on */

struct opening {
	u64 at; /* 0: before the probe was attached */
	u32 pid;
	u32 direction;
	char comm[16];
};
MAP_FLAGS(HASH, tcp_flow_open, u64, struct opening, 262144, NO_PREALLOC)

static __always_inline void name_owner(struct opening *opening)
{
	opening->pid = bpf_get_current_pid_tgid() >> 32;
	bpf_get_current_comm(opening->comm, sizeof(opening->comm));
}

static __always_inline enum ended how_it_ended(s32 error, s32 state)
{
	switch (error) {
	case 0:
		return state == TCP_ESTABLISHED || state == TCP_CLOSE_WAIT || state == TCP_SYN_RECV ? RESET_BY_US :
		       state == TCP_SYN_SENT						    ? FAILED :
												      FIN;
	case RESET:
	case BROKEN_PIPE:
		return RESET_BY_PEER;
	case ABORTED:
		return RESET_BY_US;
	case TIMED_OUT:
		return TIMEOUT;
	case CONNECTION_REFUSED:
		return REFUSED;
	case NET_UNREACHABLE:
	case HOST_UNREACHABLE:
		return UNREACHABLE;
	default:
		return FAILED;
	}
}

static __always_inline void local_address(u8 *to, struct sock *sock)
{
	if (sock->__sk_common.skc_family == IPV6) {
		bpf_probe_read_kernel(to, 16, sock->__sk_common.skc_v6_rcv_saddr);
		return;
	}
	u32 local = sock->__sk_common.skc_rcv_saddr;
	map_ipv4(to, &local);
}

static __always_inline void closed(struct sock *sock, struct tcp_sock *tcp, s32 state)
{
	struct tcp_flow_event *event = tcp_flow_reserve();
	if (!event)
		return;
	u64 address = (u64)sock;
	struct opening none = {};
	struct opening *opening = bpf_map_lookup_elem(map(tcp_flow_open), &address);
	if (!opening)
		opening = &none;
	event->ts = bpf_ktime_get_ns();
	event->duration_us = opening->at ? (event->ts - opening->at) / 1000 : -1;
	local_address(event->local_address, sock);
	remote_address(event->remote_address, sock);
	event->local_port = from_wire16(tcp->inet_conn.icsk_inet.inet_sport);
	event->remote_port = from_wire16(sock->__sk_common.skc_dport);
	event->direction = opening->direction;
	event->ended = how_it_ended(sock->sk_err, state);
	event->state = state;
	event->bytes_sent = tcp->bytes_sent - tcp->bytes_retrans;
	/* The kernel counts a FIN as a byte received, and marks the socket when it came. */
	event->bytes_received = tcp->bytes_received - (sock->__sk_common.skc_flags >> SOCK_DONE & 1);
	event->retransmits = tcp->total_retrans;
	event->srtt_us = tcp->srtt_us >> 3;
	if (!opening->pid && event->ended == RESET_BY_US)
		name_owner(opening); /* close() with unread data: the owner runs */
	event->pid = opening->pid;
	__builtin_memcpy(event->comm, opening->comm, sizeof(event->comm));
	event->cgroup = cgroup_of_socket(sock);
	tcp_flow_submit(event);
}

static __always_inline void opened(u64 address, enum direction direction)
{
	struct opening opening = {.at = bpf_ktime_get_ns(), .direction = direction};
	if (direction == CONNECTED)
		name_owner(&opening); /* accepted ones are set up while any task may be running */
	bpf_map_update_elem(map(tcp_flow_open), &address, &opening, ANY);
}

/* An attempt of this host's came to its end: it stands, or it failed. */
static __always_inline void tried(struct sock *sock, bool stands)
{
	u64 address = (u64)sock;
	struct opening *opening = bpf_map_lookup_elem(map(tcp_flow_open), &address);
	if (!opening || !opening->at)
		return;
	struct tcp_connect_key key = {.cgroup = cgroup_of_socket(sock)};
	key.remote_port = from_wire16(sock->__sk_common.skc_dport);
	remote_address(key.remote_address, sock);
	struct tcp_connect_value *value = tcp_connect_slot(&key);
	if (!value)
		return;
	if (!stands) {
		value->failed++;
		return;
	}
	u64 took = bpf_ktime_get_ns() - opening->at;
	value->count++;
	value->sum_ns += took;
	value->latencies[log2_bucket(took / 1000, 27)]++;
}

/* The owner shuts its side down: the moment at which an accepted socket's process is known. */
static __always_inline void closing(u64 address)
{
	struct opening *opening = bpf_map_lookup_elem(map(tcp_flow_open), &address);
	struct opening late = {};
	if (!opening) {
		name_owner(&late);
		bpf_map_update_elem(map(tcp_flow_open), &address, &late, ANY);
	} else if (!opening->pid) {
		name_owner(opening);
	}
}

TP_BTF(inet_sock_set_state)
{
	struct sock *sock = (void *)ARG(inet_sock_set_state, sk);
	s32 before = ARG(inet_sock_set_state, oldstate), after = ARG(inet_sock_set_state, newstate);
	u64 address = (u64)sock;
	struct tcp_sock *tcp = bpf_skc_to_tcp_sock(sock);
	if (!tcp || before == TCP_LISTEN)
		return 0; /* DCCP and SCTP pass here too */
	if (before == TCP_SYN_SENT && (after == TCP_ESTABLISHED || after == TCP_CLOSE))
		tried(sock, after == TCP_ESTABLISHED);
	if (after == TCP_SYN_SENT) {
		opened(address, CONNECTED);
	} else if (after == TCP_ESTABLISHED && before == TCP_SYN_RECV) {
		opened(address, ACCEPTED);
	} else if (after == TCP_FIN_WAIT1 || after == TCP_LAST_ACK) {
		closing(address);
	} else if (after == TCP_CLOSE) {
		closed(sock, tcp, before);
		bpf_map_delete_elem(map(tcp_flow_open), &address);
	}
	return 0;
}
