"""What filter and balancer, probes and collectors say, in the manner of :mod:`fleet.simulate.host_streams`.

Filter and balancer run on edge hosts alone.
"""

from fleet.simulate.host_streams import AGGREGATE, Made
from fleet.simulate.values import (
    CLIENT_PORT,
    COMM,
    KERNEL_STACK,
    PEER,
    USER_STACK,
    VIP,
    about,
    address,
    count,
    in_turn,
    mapped,
    mixed,
    one_of,
)

FILTER: Made = {
    "filter_stats": (2, AGGREGATE | {
        "rule": in_turn("", "block-scanners"), "verdict": in_turn("pass", "drop"),
        "packets": f"toUInt64({count(3, 900)} * if(part % 2 = 0, 20, 0.05))",
        "bytes": f"toUInt64({count(4, 400000)} * if(part % 2 = 0, 20, 0.01))",
    }),
    "filter_top": (8, AGGREGATE | {
        "kind": in_turn("source", "port", "ttl", "length"), "verdict": one_of(3, "pass", "drop"),
        "item": f"[replaceOne(toString({address(4, '203.0.113.0', 40)}), '::ffff:', ''), "
        f"['443', '80', '53'][{mixed(4)} % 3 + 1], toString(50 + {mixed(4)} % 14), "
        f"toString([60, 576, 1500][{mixed(4)} % 3 + 1])][part % 4 + 1]",
        "packets": count(5, 900), "bytes": count(6, 90000),
    }),
    "packet_sample": (120, {
        "source": PEER,
        "destination": f"if({mixed(9)} % 3 = 0, {address(3, '192.0.2.0', 200)}, {mapped(VIP)})",
        "weight": "10000", "length": about(4, 400), "ifindex": "2",
        "slot": "65535", "ethertype": "2048", "source_port": CLIENT_PORT, "destination_port": "443",
        "captured": "54", "protocol": "6", "ttl": f"40 + {mixed(6)} % 80", "tcp_flags": "16",
        "verdict": "'pass'", "raw": "toFixedString(reinterpretAsString(cityHash64(number)), 128)",
        "interface": "'eth0'",
    }),
}  # fmt: skip

BALANCER: Made = {
    "lb_stats": (8, AGGREGATE | {
        "vip": in_turn("shop", "api"),
        "real": "if(part % 8 >= 6, '', concat('10.1.0.', toString(intDiv(part % 8, 2) + 1 + part % 2 * 3)))",
        "reason": f"if(part % 8 >= 6, {one_of(4, 'table', 'remembered', 'ttl')}, '')",
        "verdict": "if(part % 8 >= 6, 'forward', 'sent')",
        "packets": count(5, 5000), "bytes": count(6, 3e6), "flows": count(7, 100),
    }),
    "lb_flow": (10, {
        "source_address": PEER, "destination_address": mapped(VIP), "real_address": address(3, "10.1.0.1", 3),
        "weight": "100", "bytes": about(4, 500), "slot": f"{mixed(8)} % 65537", "source_port": CLIENT_PORT,
        "destination_port": "443", "protocol": "6", "vip": in_turn("shop", "api"),
        "reason": one_of(6, "ring", "table", "former"),
    }),
}  # fmt: skip

OPERATION: Made = {
    "probe_result": (2, AGGREGATE | {
        "probe": in_turn("slow-open", "tcp-sizes"), "revision": "1",
        "value": in_turn("count", "sum", "log2", "stacks", after=2), "comm": COMM, "pid": about(3, 900),
        "names": "'filename'", "key1": one_of(4, "/etc/hosts", "/var/log/app.log"), "count": count(5, 4),
        "sum": count(6, 4e5), "bucket_from": f"toInt64(exp2(8 + {mixed(7)} % 8))",
        "bucket_to": "bucket_from * 2 - 1",
        "user_stack": f"if(intDiv(part, 2) % 4 = 3, {USER_STACK}, 0)",
        "kernel_stack": f"if(intDiv(part, 2) % 4 = 3, {KERNEL_STACK}, 0)",
    }),
    "collector_health": (7, AGGREGATE | {
        "kind": in_turn("stream", "stream", "stream", "program", "program", "program", "process"),
        "probe": in_turn("runq_latency", "block_io", "tcp_flow"),
        "stream": "if(part % 7 < 3, ['runq_latency', 'block_io', 'tcp_flow'][part % 3 + 1], '')",
        "program": "if(part % 7 IN (3, 4, 5), "
        "['tp_btf:sched_switch', 'tp_btf:block_rq_complete', 'tp_btf:tcp_set_state'][part % 3 + 1], '')",
        "run_ns": f"if(part % 7 IN (3, 4, 5), {count(3, 4e6)}, 0)",
        "runs": f"if(part % 7 IN (3, 4, 5), {count(4, 9000)}, 0)",
        "made": f"if(part % 7 < 3, {count(5, 900)}, 0)", "shipped": "made", "delivered": "made",
        "sampled_out": f"if(part % 7 < 3, {count(7, 2)}, 0)", "batches": "4", "bytes": "made * 30",
        "rss_bytes": f"if(part % 7 = 6, {about(9, 9e7, 0.05)}, 0)",
        "cpu_us": f"if(part % 7 = 6, {count(10, 20000)}, 0)",
        "spool_bytes": f"if(part % 7 = 6, {about(11, 9000)}, 0)",
    }),
}  # fmt: skip

ON_EDGES: Made = FILTER | BALANCER
EDGE_STREAMS: Made = ON_EDGES | OPERATION
