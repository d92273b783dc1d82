// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* Answers of servers. Only connections that this host opened are looked at, as they are seen to be opened: on the
 * others the time between sending and receiving is how long a client thinks. No protocol is parsed: a question
 * ends with the last bytes that a process sends, its answer begins with the first segment with data after that.
 * The segment's arrival counts, not when the process gets to read it: a busy host does not make its servers slow.
 *
 * Questions are counted too, and those whose connection ended first: what is left has no answer yet. What a
 * connection sends last may be no question but a word of thanks (a window update, an acknowledgement of the
 * protocol's own): anything much shorter than this connection's questions counts only once it is answered.
 */
#include "common/sock.h"

KERNEL_STRUCT(tcp_sock, srtt_us)
KERNEL_STRUCT(sk_buff, data, len)
KERNEL_ENUM(TCP_ESTABLISHED, TCP_ESTABLISHED, TCP_SYN_SENT)

#define DATA_OFFSET 12 /* byte of the TCP header whose upper half is the header's length in words */

struct asking {
	u64 asked;   /* 0: nothing is asked */
	u32 bytes;   /* of what is asked */
	u32 usual;   /* of what was answered, an average */
	u32 counted; /* whether it is among the questions */
};
MAP(LRU_HASH, tcp_response_asking, u64, struct asking, 65536)

static __always_inline struct tcp_response_value *server_of(struct sock *sock)
{
	struct tcp_response_key key = {.cgroup = cgroup_of_socket(sock)};
	remote_address(key.remote_address, sock);
	key.remote_port = from_wire16(sock->__sk_common.skc_dport);
	return tcp_response_slot(&key);
}

TP_BTF(inet_sock_set_state)
{
	u64 address = ARG(inet_sock_set_state, sk);
	s32 after = ARG(inet_sock_set_state, newstate);
	struct asking none = {};
	if (after == TCP_SYN_SENT) {
		bpf_map_update_elem(map(tcp_response_asking), &address, &none, ANY);
		return 0;
	}
	if (after == TCP_ESTABLISHED)
		return 0;
	struct asking *asking = bpf_map_lookup_elem(map(tcp_response_asking), &address);
	if (!asking)
		return 0;
	if (asking->asked && asking->counted) {
		struct tcp_response_value *value = server_of((void *)address);
		if (value) {
			value->unanswered++;
			value->unanswered_us += (bpf_ktime_get_ns() - asking->asked) / 1000;
		}
	}
	bpf_map_delete_elem(map(tcp_response_asking), &address);
	return 0;
}

TP_BTF(sock_send_length)
{
	u64 address = ARG(sock_send_length, sk);
	s32 sent = ARG(sock_send_length, ret);
	struct asking *asking = bpf_map_lookup_elem(map(tcp_response_asking), &address);
	if (!asking || sent <= 0)
		return 0;
	asking->bytes = asking->asked ? asking->bytes + sent : sent;
	asking->asked = bpf_ktime_get_ns();
	if (asking->counted || asking->bytes < asking->usual / 2)
		return 0;
	struct tcp_response_value *value = server_of((void *)address);
	if (!value)
		return 0;
	asking->counted = 1;
	value->questions++;
	return 0;
}

static __always_inline u32 has_data(struct sk_buff *packet)
{
	u8 words = 0;
	bpf_probe_read_kernel(&words, 1, (u8 *)packet->data + DATA_OFFSET);
	return packet->len > (words >> 4) * 4U;
}

/* Each segment that an established connection receives passes here, before it is queued. */
TP_BTF(tcp_probe)
{
	struct sock *sock = (void *)ARG(tcp_probe, sk);
	u64 address = (u64)sock;
	struct asking *asking = bpf_map_lookup_elem(map(tcp_response_asking), &address);
	if (!asking || !asking->asked || !has_data((void *)ARG(tcp_probe, skb)))
		return 0;
	struct tcp_sock *tcp = bpf_skc_to_tcp_sock(sock);
	if (!tcp)
		return 0;
	u64 took = (bpf_ktime_get_ns() - asking->asked) / 1000;
	u32 counted = asking->counted;
	asking->usual = asking->usual ? (asking->usual * 3ULL + asking->bytes) / 4 : asking->bytes;
	asking->asked = asking->counted = 0;
	struct tcp_response_value *value = server_of(sock);
	if (!value)
		return 0;
	value->count++;
	value->questions += !counted;
	value->sum_us += took;
	value->rtt_us += tcp->srtt_us >> 3;
	value->times[log2_bucket(took, 27)]++;
	return 0;
}
