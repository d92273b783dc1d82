"""Network: connections, who talks to whom, what is sent again, what is dropped and where."""

from dashboards.source.board import dashboard
from dashboards.source.panels import bars, graph, link, row, stat, table, thresholds, timeseries
from dashboards.source.parts import (
    BY_MINUTE,
    CGROUP,
    CGROUPS,
    HERE,
    HERE_BY_MINUTE,
    MARKS,
    WHERE,
    address,
    share,
)

MINE = f"{HERE} AND {CGROUPS}"
MINE_BY_MINUTE = f"{HERE_BY_MINUTE} AND {CGROUPS}"
REMOTE = address("remote_address")

# Services as people know them: the cgroup on this side; on the other its address and port.
EDGES = f"""
SELECT cgroup AS service, concat({REMOTE}, ':', toString(remote_port)) AS peer, count() AS connections,
  sum(bytes_sent + bytes_received) AS bytes, sum(retransmits) AS again
FROM tcp_flow
WHERE {MINE} AND direction = 'connected'
GROUP BY service, remote_address, remote_port ORDER BY bytes DESC LIMIT 60"""

PANELS = [
    row("Is it well?"),
    stat(
        "Connections",
        f"SELECT sum(flows) AS connections FROM (SELECT count() AS flows FROM tcp_flow WHERE "
        f"{MINE_BY_MINUTE})",
        "short",
        "Connections that closed in this window. Bad: far from what this time of day usually has.",
        link("Load balancer", "balancer"),
    ),
    stat(
        "Sent again",
        f"""
SELECT {share("sum(tcp_retransmits)", "sum(tcp_segments)")} AS share FROM pressure WHERE {HERE_BY_MINUTE}""",
        "percentunit",
        "Share of TCP segments sent again. Bad: above 1 %.",
        link("Host", "host"),
        decimals=3,
        steps=thresholds((None, "green"), (0.01, "orange"), (0.03, "red")),
    ),
    stat(
        "Packets dropped",
        f"SELECT sum(packets) AS packets FROM packet_drop_count WHERE {HERE_BY_MINUTE}",
        "short",
        "Packets the kernel dropped, counted exactly. Bad: above 1 % of what arrives, or a jump.",
        link("Attacks", "attacks"),
    ),
    stat(
        "Connections refused by full queues",
        f"SELECT sum(drops) AS connections FROM listen_drop WHERE {HERE}",
        "short",
        "Connections turned away since the accept queue was full. Bad: any; the server accepts too slowly.",
        link("Host", "host"),
        steps=thresholds((None, "green"), (1, "red")),
    ),
    stat(
        "Datagrams without room",
        f"SELECT sum(count) AS datagrams FROM udp_error WHERE {MINE}",
        "short",
        "UDP datagrams that found their socket full. Bad: any on a resolver or a media server.",
        link("Host", "host"),
        steps=thresholds((None, "green"), (1, "orange"), (1000, "red")),
    ),
    stat(
        "Resets",
        f"SELECT sum(count) AS resets FROM tcp_reset WHERE {MINE}",
        "short",
        "TCP resets, sent and received. Bad: a jump; the reasons are in the table below.",
        link("Host", "host"),
    ),
    row("Connections over time"),
    timeseries(
        "Connections that closed, by service",
        f"""
SELECT {BY_MINUTE}, cgroup, count() / $__interval_s AS connections
FROM tcp_flow WHERE {MINE_BY_MINUTE} AND cgroup IN (
  SELECT cgroup FROM tcp_flow WHERE {MINE_BY_MINUTE} GROUP BY cgroup ORDER BY count() DESC LIMIT 10)
GROUP BY time, cgroup ORDER BY time, cgroup""",
        "cps",
        "Closed connections a second, the ten busiest. Bad: a sudden fall "
        "(nobody comes through) or rise (a storm of short ones).",
        link("Host", "host"),
        stack=True,
        least="1m",
    ),
    timeseries(
        "How they ended",
        f"""
SELECT {BY_MINUTE}, ended, count() / $__interval_s AS connections
FROM tcp_flow WHERE {MINE_BY_MINUTE} GROUP BY time, ended ORDER BY time, ended""",
        "cps",
        "Ends of connections by kind. Bad: a growing share of resets and timeouts.",
        link("Host", "host"),
        stack=True,
        least="1m",
    ),
    timeseries(
        "Bytes",
        f"""
SELECT {BY_MINUTE}, direction, sum(bytes_sent) / $__interval_s AS sent,
  sum(bytes_received) / $__interval_s AS received
FROM tcp_flow WHERE {MINE_BY_MINUTE} GROUP BY time, direction ORDER BY time, direction""",
        "Bps",
        "Payload of connections, counted at their close. Bad: flat at the line's rate.",
        link("Host", "host"),
        least="1m",
    ),
    timeseries(
        "Segments sent again, by state",
        f"""
SELECT {BY_MINUTE}, state, sum(count) / $__interval_s AS segments
FROM tcp_retransmit WHERE {MINE_BY_MINUTE} GROUP BY time, state ORDER BY time, state""",
        "pps",
        "Bad: SYN_SENT: peers do not answer; ESTABLISHED: packets are lost on the way.",
        link("Latency", "latency"),
        stack=True,
        least="1m",
    ),
    bars(
        "Top talkers",
        f"""
SELECT {REMOTE} AS remote, sum(bytes_sent + bytes_received) AS bytes
FROM tcp_flow WHERE {MINE} GROUP BY remote_address ORDER BY bytes DESC LIMIT 15""",
        "bytes",
        "Remote addresses by bytes. Bad: one you do not know.",
        link("Attacks", "attacks"),
        size=(8, 9),
    ),
    bars(
        "Sent again, by remote",
        f"""
SELECT {REMOTE} AS remote, sum(count) AS segments
FROM tcp_retransmit WHERE {MINE} GROUP BY remote_address ORDER BY segments DESC LIMIT 15""",
        "short",
        "Where packets get lost. Bad: one address far ahead of the others: its way is sick.",
        link("Latency", "latency"),
        size=(8, 9),
    ),
    table(
        "Resets by reason",
        f"""
SELECT direction, reason, local_port, sum(count) AS resets
FROM tcp_reset WHERE {MINE} GROUP BY direction, reason, local_port ORDER BY resets DESC LIMIT 50""",
        "Why connections were reset. Bad: NO_SOCKET on a port that should be served.",
        link("Host", "host"),
        units={"resets": "short"},
        size=(8, 9),
    ),
    row("Drops"),
    timeseries(
        "Dropped, by reason",
        f"""
SELECT {BY_MINUTE}, reason, sum(packets) / $__interval_s AS packets
FROM packet_drop_count WHERE {HERE_BY_MINUTE} GROUP BY time, reason ORDER BY time, reason""",
        "pps",
        "All drops of the "
        "kernel, exactly. Bad: SOCKET_RCVBUFF, FULL_RING and the like grow: somebody is too slow.",
        link("Host", "host"),
        stack=True,
        least="1m",
    ),
    table(
        "Dropped, by place in the kernel",
        f"""
SELECT reason, location, sum(weight) AS packets, uniq(destination_port) AS ports,
  uniq(source_address) AS sources
FROM packet_drop WHERE {HERE} GROUP BY reason, location ORDER BY packets DESC LIMIT 50""",
        "Which function gave up the packet, estimated from samples. Bad: a place you cannot explain.",
        link("Attacks", "attacks"),
        units={"packets": "short", "ports": "short", "sources": "short"},
        size=(12, 8),
    ),
    row("Who needs whom"),
    graph(
        "Service map",
        f"""
WITH edges AS ({EDGES})
SELECT id, id AS title, any(side) AS subtitle, sum(bytes) AS mainstat, sum(connections) AS secondarystat,
  1 - lost AS arc__well, least(1, sum(again) / greatest(sum(connections), 1)) AS lost, lost AS arc__again
FROM (
  SELECT service AS id, 'service' AS side, bytes, connections, again FROM edges
  UNION ALL SELECT peer AS id, 'peer' AS side, bytes, connections, again FROM edges)
GROUP BY id""",
        f"""
WITH edges AS ({EDGES})
SELECT concat(service, ' → ', peer) AS id, service AS source, peer AS target, bytes AS mainstat,
  connections AS secondarystat FROM edges""",
        "bytes",
        "Services and what they connect to, by bytes; the red part of a ring is "
        "segments sent again per connection. Bad: an edge nobody expects, a ring that reddens.",
        link("Latency", "latency"),
    ),
]

DASHBOARD = dashboard(
    "network",
    "Network",
    "Connections, top talkers, retransmits, drops by reason and place, and the service map.",
    PANELS,
    variables=[*WHERE, CGROUP],
    annotations=MARKS,
)
