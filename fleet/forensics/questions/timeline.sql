-- How much passed and how much was dropped, minute by minute?
-- Estimated packets of the whole fleet, or towards one address.
-- @destination IPv6 = '::': only towards this address
-- @since 30d
SELECT toStartOfMinute(ts) AS minute, sumIf(amount, verdict = 'pass') AS passed,
       sumIf(amount, verdict = 'drop') AS dropped, sumIf(amount, verdict = 'shadow') AS shadow
FROM (
    SELECT toStartOfMinute(ts) AS ts, verdict, sum(weight) AS amount FROM packet_sample
    WHERE {destination:IPv6} = toIPv6('::')
      AND toStartOfMinute(ts) BETWEEN toStartOfMinute({since:DateTime64(6, 'UTC')}) AND {until:DateTime64(6, 'UTC')}
    GROUP BY ts, verdict
    UNION ALL
    SELECT toStartOfMinute(ts) AS ts, verdict, sum(weight) FROM packet_sample
    WHERE {destination:IPv6} != toIPv6('::') AND destination = {destination:IPv6}
      AND toStartOfMinute(ts) BETWEEN toStartOfMinute({since:DateTime64(6, 'UTC')}) AND {until:DateTime64(6, 'UTC')}
    GROUP BY ts, verdict
)
GROUP BY minute ORDER BY minute
