"""What hosts say of themselves: for each stream how many rows a minute and host, and an expression a column.

A column without one has its type's default. :mod:`fleet.simulate.values` explains the names they use.
"""

from fleet.simulate.values import (
    CGROUP,
    CGROUPS,
    CLIENT_PORT,
    COMM,
    EDGE,
    HOST,
    KERNEL_STACK,
    PEER,
    ROLES,
    STACKS,
    USER_STACK,
    VIP,
    about,
    address,
    count,
    histogram,
    in_turn,
    mapped,
    mixed,
    one_of,
)

Made = dict[str, tuple[float, dict[str, str]]]
AGGREGATE = {"interval_us": "toUInt64(seconds * 1e6)"}
OF_CGROUP = AGGREGATE | {"cgroup": CGROUP}
EACH = len(CGROUPS)
DATABASES = address(21, "10.2.0.1", 3)
DATABASE = mapped("10.2.0.1")  # the one of them that everybody asks most
BUSY = "[3, 4, 2, 0.3, 0.7][part % 5 + 1]"  # of the cgroups in turn

INVENTORY: Made = {
    "host": (2, {
        "kernel": "'6.12.0'", "arch": "'x86_64'", "os": "'Debian GNU/Linux 12'", "cores": "8",
        "memory_bytes": "34359738368", "version": "'0.1.0'", "probes": "'runq_latency,block_io,tcp_flow'",
        "booted": "begin - INTERVAL 9 DAY", "started": "begin + INTERVAL place % 12 MINUTE",
        "labels": f"concat('{{\"region\": \"', ['eu', 'us'][intDiv(place, {EDGE}) % 2 + 1], "
        "'\", \"role\": \"', "
        f"{list(ROLES)!r}[place % {EDGE} + 1], '\", \"simulated\": \"yes\"}}')",
        "failed": "if(place = 5, '{\"tcp_flow\": \"no BTF\"}', '{}')",
    }),
    "verdict": (1, {
        "host": "concat(prefix, 'ops')", "target_host": HOST, "rank": "1", "verdict": "'nothing_wrong'",
        "score": "0.1", "metric": "'pressure.cpu_some'", "unit": "'%'", "value": "3", "threshold": "20",
        "began": "ts - INTERVAL 1 MINUTE", "summary": "'nothing is wrong'",
    }),
}  # fmt: skip

CPU: Made = {
    "runq_latency": (EACH, OF_CGROUP | {
        "count": count(2, 900), "sum_ns": count(3, 2e7), "waits": histogram(4, 3),
    }),
    "preemption": (EACH, OF_CGROUP | {
        "by_cgroup": CGROUP, "by": one_of(5, "same", "system", "other", "idle"), "preempted": count(5, 30),
        "waits": count(6, 20), "waited_ns": count(8, 3e6),
    }),
    "pressure": (1, AGGREGATE | {
        "cores": "8", "running": about(2, 3), "blocked": "1", "cpu_some_us": count(3, 30000),
        "memory_some_us": count(4, 500), "memory_full_us": count(5, 100), "io_some_us": count(6, 9000),
        "io_full_us": count(7, 2000), "user_us": count(8, 2e6), "system_us": count(9, 5e5),
        "irq_us": count(10, 5e4), "steal_us": count(11, 2e3), "idle_us": count(12, 5e6),
        "memory_available_bytes": about(13, 8e9, 0.1), "major_faults": count(14, 3), "refaults": count(15, 4),
        "tcp_segments": count(16, 9000), "tcp_retransmits": count(17, 9),
    }),
    "cpu_time": (EACH, OF_CGROUP | {
        "usage_us": f"toUInt64({count(2, 300000)} * {BUSY})", "user_us": count(3, 200000),
        "system_us": count(4, 90000), "quota_us": "200000", "period_us": "100000",
        "periods": "toUInt64(10 * seconds)", "throttled_periods": f"{mixed(5)} % 3",
        "throttled_us": count(6, 500),
    }),
    "cpu_profile": (6, AGGREGATE | {
        "cgroup": CGROUP, "comm": COMM, "pid": "800 + part % 7", "user_stack": USER_STACK,
        "kernel_stack": f"if({mixed(3)} % 3 = 0, {KERNEL_STACK}, 0)", "samples": count(4, 10),
        "cpu_ns": count(5, 2e8),
    }),
    "off_cpu": (6, AGGREGATE | {
        "cgroup": CGROUP, "comm": COMM, "pid": "800 + part % 7", "user_stack": USER_STACK,
        "kernel_stack": KERNEL_STACK, "state": one_of(3, "sleeping", "blocked", "runnable"),
        "samples": count(4, 10), "weight": about(5, 40), "off_ns": count(6, 4e8),
    }),
    "stack": (0.5, {
        "stack": f"toUInt64(if(number % 2 = 0, half % {STACKS} + 1, half % 10 + 1001))",
        "kind": "if(number % 2 = 0, 'user', 'kernel')",
        "frames": "if(number % 2 = 0, arrayStringConcat(arrayMap(each -> concat("
        "['main', 'serve', 'handle', 'parse', 'query', 'compress', 'copy'][each + 1], "
        "if(each > 2, concat('_', toString(intDiv(stack, each * 3))), '')), range(3 + stack % 5)), ';'), "
        "concat('entry_SYSCALL_64;do_syscall_64;ksys_', "
        "['read', 'write', 'futex', 'openat', 'poll'][stack % 5 + 1]))",
        "modules": "'app;app;app'",
    }),
    "process_exit": (0.5, {
        "pid": about(2, 2000), "comm": COMM, "duration_us": about(3, 1e6),
        "exit_code": f"if({mixed(4)} % 50 = 0, 1, 0)", "signal": f"if({mixed(5)} % 200 = 0, 11, 0)",
        "cgroup": CGROUP,
    }),
    "syscall_latency": (EACH, OF_CGROUP | {
        "syscall": one_of(2, "read", "write", "futex", "openat", "fsync"), "latencies": histogram(5, 2),
    }),
}  # fmt: skip

DISK: Made = {
    "block_io": (6, AGGREGATE | {
        "device": in_turn("nvme0n1", "nvme1n1"), "operation": in_turn("READ", "WRITE", "FLUSH", after=2),
        "count": count(3, 300), "bytes": count(4, 9e6), "latency_ns": count(5, 3e7),
        "queued_ns": count(6, 4e6), "latencies": histogram(7, 7),
    }),
    "block_io_slow": (0.3, {
        "device": "'nvme0n1'", "operation": one_of(2, "READ", "WRITE"), "sector": about(3, 1e8),
        "bytes": "65536", "latency_ns": about(4, 3e7, 0.3), "queued_ns": about(5, 2e6),
        "pid": about(6, 2000), "comm": COMM, "cgroup": CGROUP,
    }),
    "file_io": (0.3, {
        "operation": one_of(2, "fsync", "read", "write", "openat"),
        "file": one_of(3, "wal", "access.log", "data"), "filesystem": "'ext4'", "device": "'nvme0n1'",
        "latency_ns": about(4, 3e7, 0.3), "bytes": "4096", "pid": about(6, 2000), "comm": COMM,
        "cgroup": CGROUP,
    }),
}  # fmt: skip

NETWORK: Made = {
    "tcp_connect": (EACH, OF_CGROUP | {
        "remote_address": DATABASES, "remote_port": "5432", "count": count(2, 20),
        "failed": f"{mixed(3)} % 50 = 0", "sum_ns": count(4, 2e7), "latencies": histogram(5, 9),
    }),
    "tcp_rtt": (EACH, OF_CGROUP | {
        "remote_address": f"if({mixed(8)} % 2 = 0, {DATABASE}, {PEER})", "samples": count(2, 50),
        "count": count(3, 500), "delivered": count(3, 450), "sum_us": count(4, 40000),
        "rtts": histogram(5, 10),
    }),
    "tcp_response": (EACH, OF_CGROUP | {
        "remote_address": DATABASES, "remote_port": "5432", "count": count(2, 50),
        "sum_us": count(3, 90000), "rtt_us": about(4, 20000), "times": histogram(5, 11),
    }),
    "tcp_retransmit": (0.5, OF_CGROUP | {
        # Now and then one, to a remote whose segments arrive otherwise: diagnosis has nothing to say.
        "remote_address": DATABASE, "state": f"if({mixed(2)} % 9 = 0, 'CLOSE_WAIT', 'ESTABLISHED')",
        "count": "1", "bytes": "1400",
    }),
    "tcp_reset": (1, OF_CGROUP | {
        "direction": one_of(2, "sent", "received"), "remote_address": PEER, "local_port": "443",
        "reason": one_of(3, "NO_SOCKET", "NOT_SPECIFIED", "TCP_ABORT_ON_CLOSE"), "count": about(4, 2),
    }),
    "tcp_flow": (10, {
        "duration_us": about(2, 120000, 1.8), "local_address": mapped(VIP), "local_port": "443",
        "remote_address": f"if({mixed(3)} % 5 = 0, {DATABASES}, {PEER})",
        "remote_port": f"if({mixed(3)} % 5 = 0, [5432, 6379, 9092][{mixed(4)} % 3 + 1], {CLIENT_PORT})",
        "direction": f"if({mixed(3)} % 5 = 0, 'connected', 'accepted')",
        "ended": f"if({mixed(6)} % 30 = 0, {one_of(6, 'reset_by_peer', 'reset_by_us', 'timeout')}, 'fin')",
        "state": one_of(7, "LAST_ACK", "FIN_WAIT2"), "bytes_sent": about(8, 6000, 1.5),
        "bytes_received": about(9, 700), "retransmits": f"{mixed(10)} % 50 = 0", "srtt_us": about(11, 25000),
        "pid": about(12, 800, 0.1), "comm": COMM, "cgroup": CGROUP,
    }),
    "packet_drop": (1, {
        "reason": one_of(2, "NO_SOCKET", "TCP_OLD_DATA", "NETFILTER_DROP", "SOCKET_RCVBUFF"),
        "location": one_of(2, "tcp_v4_rcv", "tcp_data_queue", "nf_hook_slow", "udp_queue_rcv"),
        "interface": "'eth0'", "ethertype": "2048", "protocol": "6", "tcp_flags": "2",
        "source_address": PEER, "destination_address": mapped(VIP),
        "source_port": f"32768 + {mixed(4)} % 28000", "destination_port": f"{mixed(5)} % 1000",
        "length": about(6, 200), "weight": "1",
    }),
    "packet_drop_count": (4, AGGREGATE | {
        "reason": in_turn("NO_SOCKET", "TCP_OLD_DATA", "NETFILTER_DROP", "SOCKET_RCVBUFF"),
        "packets": count(3, 2),
    }),
    "listen_drop": (0.2, AGGREGATE | {
        "local_address": "'0.0.0.0'", "local_port": "443", "drops": f"{mixed(2)} % 9 = 0",
        "queued": about(3, 5), "limit": "128",
    }),
    "udp_error": (0.1, AGGREGATE | {
        "local_port": "53", "error": "'ENOMEM'", "cgroup": CGROUP, "count": about(2, 3),
        "bytes": about(3, 600),
    }),
}  # fmt: skip

HOST_STREAMS: Made = INVENTORY | CPU | DISK | NETWORK
