-- How did this flow travel?
-- What each part saw of one connection, in order: filter, balancer (which real, and why), kernel drops, the server's
-- own record, and how long its cgroup waited for a CPU in that minute.
-- @source IPv6: the client's address
-- @source_port UInt16: the client's port
-- @destination IPv6: the address it spoke to (a VIP, or a host's own)
-- @destination_port UInt16: the port it spoke to
-- @since 1h
WITH flows AS (
    SELECT * FROM tcp_flow WHERE remote_address = {source:IPv6} AND remote_port = {source_port:UInt16}
      AND local_port = {destination_port:UInt16} AND ts BETWEEN {since:DateTime64(6, 'UTC')} AND {until:DateTime64(6, 'UTC')}
)
SELECT at AS ts, host, part, what, detail FROM (
    SELECT min(ts) AS at, host, 'filter' AS part, concat(verdict, if(rule = '', '', concat(' by ', rule))) AS what,
           concat(toString(sum(weight)), ' frames, ', toString(sum(weight * length)), ' bytes') AS detail
    FROM packet_sample
    WHERE source = {source:IPv6} AND destination = {destination:IPv6} AND source_port = {source_port:UInt16}
      AND destination_port = {destination_port:UInt16}
      AND ts BETWEEN {since:DateTime64(6, 'UTC')} AND {until:DateTime64(6, 'UTC')}
    GROUP BY host, verdict, rule
    UNION ALL
    SELECT min(ts), host, 'balancer', concat(vip, ' → ', replaceOne(toString(real_address), '::ffff:', '')),
           concat('slot ', toString(any(slot)), ': ', toString(reason))
    FROM lb_flow
    WHERE source_address = {source:IPv6} AND destination_address = {destination:IPv6}
      AND source_port = {source_port:UInt16} AND destination_port = {destination_port:UInt16}
      AND ts BETWEEN {since:DateTime64(6, 'UTC')} AND {until:DateTime64(6, 'UTC')}
    GROUP BY host, vip, real_address, reason
    UNION ALL
    SELECT ts, host, 'kernel drop', toString(reason), concat(toString(location), ', ', interface)
    FROM packet_drop
    WHERE source_address = {source:IPv6} AND source_port = {source_port:UInt16}
      AND destination_port = {destination_port:UInt16}
      AND ts BETWEEN {since:DateTime64(6, 'UTC')} AND {until:DateTime64(6, 'UTC')}
    UNION ALL
    SELECT ts, host, 'connection', concat(comm, ': ', ended),
           concat(toString(bytes_received), ' bytes in, ', toString(bytes_sent), ' out, ', toString(retransmits),
                  ' retransmits, ', toString(round(duration_us / 1000, 1)), ' ms, round trip ',
                  toString(srtt_us), ' µs')
    FROM flows
    UNION ALL
    SELECT min(ts), host, 'run queue', cgroup,
           concat(toString(round(sum(sum_ns) / sum(count) / 1000, 1)), ' µs a wait on average, ',
                  toString(sum(count)), ' waits')
    FROM runq_latency
    WHERE (host, cgroup) IN (SELECT host, cgroup FROM flows)
      AND ts BETWEEN (SELECT min(ts) - toIntervalMicrosecond(max(duration_us)) FROM flows)
                 AND (SELECT max(ts) + INTERVAL 2 SECOND FROM flows)
    GROUP BY host, cgroup
)
ORDER BY at
