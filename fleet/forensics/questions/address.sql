-- What did this address do to us?
-- One line for each way it was seen: sampled frames by verdict and rule, connections by their end, kernel drops by
-- reason. Packets are estimates where frames were sampled, exact for connections. Frames are told to the minute: they
-- are summed beforehand, by source.
-- @address IPv6: the address asked about
-- @since 90d
SELECT * FROM (
    SELECT 'frames' AS seen, verdict AS outcome, rule AS by_what, toString(any(destination)) AS example,
           uniq(host) AS hosts, uniq(destination) AS peers, topKWeighted(3)(destination_port, frames) AS ports,
           sum(weight * frames) AS packets, sum(weight * length * frames) AS bytes, min(at) AS first, max(at) AS last
    FROM (
        SELECT toDateTime(toDate(ts), 'UTC') + 3600 * toHour(ts) + 60 * toMinute(ts) AS at, verdict, rule, host,
               destination, destination_port, length, weight, count() AS frames
        FROM packet_sample WHERE source = {address:IPv6}
          AND toDate(ts) BETWEEN toDate({since:DateTime64(6, 'UTC')}) AND toDate({until:DateTime64(6, 'UTC')})
        GROUP BY toDate(ts), toHour(ts), toMinute(ts), verdict, rule, host, destination, destination_port, length, weight
    )
    WHERE at BETWEEN toStartOfMinute({since:DateTime64(6, 'UTC')}) AND {until:DateTime64(6, 'UTC')}
    GROUP BY verdict, rule
    UNION ALL
    SELECT 'connections', ended, direction, toString(any(local_address)), uniq(host), uniq(local_address),
           topK(3)(if(direction = 'accepted', local_port, remote_port)), toUInt64(count()),
           toUInt64(sum(bytes_sent + bytes_received)), min(ts), max(ts)
    FROM tcp_flow WHERE remote_address = {address:IPv6} AND ts BETWEEN {since:DateTime64(6, 'UTC')} AND {until:DateTime64(6, 'UTC')}
    GROUP BY ended, direction
    UNION ALL
    SELECT 'kernel drops', toString(reason), toString(any(location)), toString(any(destination_address)), uniq(host),
           uniq(destination_address), topK(3)(destination_port), toUInt64(sum(weight)), toUInt64(sum(weight * length)),
           min(ts), max(ts)
    FROM packet_drop WHERE source_address = {address:IPv6}
      AND ts BETWEEN {since:DateTime64(6, 'UTC')} AND {until:DateTime64(6, 'UTC')}
    GROUP BY reason
)
ORDER BY packets DESC
