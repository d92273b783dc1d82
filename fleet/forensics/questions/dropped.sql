-- Which rule dropped this customer's packets, and who wrote it?
-- Rules that dropped (or, in shadow, would have dropped) sampled frames from the address, with the author, the
-- comment and the expression of the document that was in force last.
-- @address IPv6: the customer's address
-- @since 90d
SELECT dropped.rule AS rule, dropped.verdict AS verdict, dropped.packets AS packets, dropped.hosts AS hosts,
       dropped.first AS first, dropped.last AS last, written.author AS author, written.signer AS signer,
       written.created AS written, written.comment AS comment, written.spec AS spec
FROM (
    SELECT rule, verdict, sum(weight * frames) AS packets, uniq(host) AS hosts, min(at) AS first, max(at) AS last
    FROM ( -- summed beforehand, by source and minute
        SELECT toDateTime(toDate(ts), 'UTC') + 3600 * toHour(ts) + 60 * toMinute(ts) AS at, verdict, rule, host, weight,
               count() AS frames
        FROM packet_sample
        WHERE source = {address:IPv6} AND verdict IN ('drop', 'shadow')
          AND toDate(ts) BETWEEN toDate({since:DateTime64(6, 'UTC')}) AND toDate({until:DateTime64(6, 'UTC')})
        GROUP BY toDate(ts), toHour(ts), toMinute(ts), verdict, rule, host, weight
    )
    WHERE at BETWEEN toStartOfMinute({since:DateTime64(6, 'UTC')}) AND {until:DateTime64(6, 'UTC')}
    GROUP BY rule, verdict
) AS dropped
LEFT JOIN (
    SELECT id, argMax(author, ts) AS author, argMax(signer, ts) AS signer, max(ts) AS created,
           argMax(comment, ts) AS comment, argMax(spec, ts) AS spec
    FROM desired WHERE kind = 'filter' AND NOT deleted AND ts <= {until:DateTime64(6, 'UTC')} GROUP BY id
) AS written ON written.id = dropped.rule
ORDER BY packets DESC
