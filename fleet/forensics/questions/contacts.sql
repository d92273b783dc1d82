-- Which of our hosts had to do with this address?
-- Connections, tries to connect, and sampled frames, by host and process.
-- @address IPv6: the address asked about
-- @since 90d
SELECT host, how, process, sum(times) AS times, sum(bytes) AS bytes, min(first) AS first, max(last) AS last FROM (
    SELECT host, concat('connection ', direction) AS how, comm AS process, count() AS times,
           sum(bytes_sent + bytes_received) AS bytes, min(ts) AS first, max(ts) AS last
    FROM tcp_flow WHERE remote_address = {address:IPv6}
      AND ts BETWEEN {since:DateTime64(6, 'UTC')} AND {until:DateTime64(6, 'UTC')}
    GROUP BY host, direction, comm
    UNION ALL
    SELECT host, 'connects', cgroup, sum(count), 0, min(ts), max(ts)
    FROM tcp_connect WHERE remote_address = {address:IPv6}
      AND ts BETWEEN {since:DateTime64(6, 'UTC')} AND {until:DateTime64(6, 'UTC')}
    GROUP BY host, cgroup
    UNION ALL
    SELECT host, concat('frames ', verdict), rule, sum(weight * frames), sum(weight * length * frames), min(at), max(at)
    FROM ( -- summed beforehand, by source and minute
        SELECT toDateTime(toDate(ts), 'UTC') + 3600 * toHour(ts) + 60 * toMinute(ts) AS at, host, verdict, rule, weight,
               length, count() AS frames
        FROM packet_sample WHERE source = {address:IPv6}
          AND toDate(ts) BETWEEN toDate({since:DateTime64(6, 'UTC')}) AND toDate({until:DateTime64(6, 'UTC')})
        GROUP BY toDate(ts), toHour(ts), toMinute(ts), host, verdict, rule, weight, length
    )
    WHERE at BETWEEN toStartOfMinute({since:DateTime64(6, 'UTC')}) AND {until:DateTime64(6, 'UTC')}
    GROUP BY host, verdict, rule
    UNION ALL
    SELECT host, concat('frames ', verdict), rule, sum(weight), sum(weight * length), min(ts), max(ts)
    FROM packet_sample WHERE destination = {address:IPv6} AND source != destination
      AND ts BETWEEN {since:DateTime64(6, 'UTC')} AND {until:DateTime64(6, 'UTC')}
    GROUP BY host, verdict, rule
)
GROUP BY host, how, process ORDER BY times DESC
