// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
// Fills the table of connections from the kernel's socket states: in when a connection is established, out when
// it is closed. It is pinned like the filter and works on without the collector.

#include "xdp/filter_connections.h"
#include "xdp/filter_parse.h"

KERNEL_STRUCT(sock, __sk_common.skc_family, __sk_common.skc_rcv_saddr, __sk_common.skc_daddr,
              __sk_common.skc_v6_rcv_saddr, __sk_common.skc_v6_daddr, __sk_common.skc_dport, __sk_common.skc_num)
KERNEL_ENUM(TCP_ESTABLISHED, TCP_ESTABLISHED, TCP_CLOSE)

enum { FAMILY_IPV4 = 2, FAMILY_IPV6 = 10 };

TP_BTF(inet_sock_set_state)
{
    struct sock *sock = (void *)ARG(inet_sock_set_state, sk);
    s32 after = ARG(inet_sock_set_state, newstate);
    struct filter_connection key = {};
    u64 now;

    if (after != TCP_ESTABLISHED && after != TCP_CLOSE)
        return 0;
    if (sock->__sk_common.skc_family == FAMILY_IPV4) {
        mapped(key.local, &sock->__sk_common.skc_rcv_saddr);
        mapped(key.remote, &sock->__sk_common.skc_daddr);
    } else if (sock->__sk_common.skc_family == FAMILY_IPV6) {
        __builtin_memcpy(key.local, &sock->__sk_common.skc_v6_rcv_saddr, 16);
        __builtin_memcpy(key.remote, &sock->__sk_common.skc_v6_daddr, 16);
    } else {
        return 0;
    }
    key.local_port = BE16(sock->__sk_common.skc_num);
    key.remote_port = sock->__sk_common.skc_dport;
    if (after == TCP_CLOSE) {
        bpf_map_delete_elem(map(filter_connections), &key);
        return 0;
    }
    now = bpf_ktime_get_ns();
    bpf_map_update_elem(map(filter_connections), &key, &now, ANY);
    return 0;
}
