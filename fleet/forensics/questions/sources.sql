-- Who sent most?
-- Sources by estimated packets, with what became of them.
-- @verdict String = '': only pass, drop or shadow
-- @top UInt32 = '20': how many
-- @since 1h
SELECT source, sum(weight) AS packets, sum(weight * length) AS bytes, sumIf(weight, verdict = 'drop') AS dropped,
       uniq(destination) AS destinations, topK(3)(destination_port) AS ports, uniq(host) AS hosts
FROM packet_sample
WHERE ts BETWEEN {since:DateTime64(6, 'UTC')} AND {until:DateTime64(6, 'UTC')}
  AND ({verdict:String} = '' OR verdict = {verdict:String})
  AND source IN ( -- first who they are: the rest need no details
    SELECT source FROM packet_sample
    WHERE ts BETWEEN {since:DateTime64(6, 'UTC')} AND {until:DateTime64(6, 'UTC')}
      AND ({verdict:String} = '' OR verdict = {verdict:String})
    GROUP BY source ORDER BY sum(weight) DESC, source LIMIT {top:UInt32})
GROUP BY source ORDER BY packets DESC, source LIMIT {top:UInt32}
