// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* What a program wants to know of a socket. */
#pragma once
#include "common/net.h"
#include "common/task.h"

KERNEL_STRUCT(sock, __sk_common.skc_family, __sk_common.skc_daddr, __sk_common.skc_v6_daddr, __sk_common.skc_dport,
	      __sk_common.skc_num, __sk_common.skc_state, ?sk_cgrp_data.cgroup)

static __always_inline u64 cgroup_of_socket(struct sock *sock)
{
#if HAS(sock, sk_cgrp_data__cgroup)
	return sock->sk_cgrp_data.cgroup->kn->id;
#else
	return 0;
#endif
}

/* The other side's address, IPv4 mapped; `to` has 16 bytes. */
static __always_inline void remote_address(u8 *to, struct sock *sock)
{
	if (sock->__sk_common.skc_family == IPV6) {
		bpf_probe_read_kernel(to, 16, sock->__sk_common.skc_v6_daddr);
		return;
	}
	u32 remote = sock->__sk_common.skc_daddr;
	map_ipv4(to, &remote);
}
