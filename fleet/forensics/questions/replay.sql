-- How did an attack go, second by second?
-- Packets a second towards the attack's target by verdict (estimated from samples), where they came from, and the
-- steps that were taken in that second.
-- @attack String: the attack's id, from `bpfleet attacks list`
-- @since 90d
WITH
    of AS (
        SELECT argMax(target, revision) AS target, min(began) AS began,
               if(max(ended) > toDateTime64(0, 6), max(ended), {until:DateTime64(6, 'UTC')}) AS ended
        FROM attack WHERE id = {attack:String}
    ),
    assumeNotNull((SELECT target FROM of)) AS target, assumeNotNull((SELECT began FROM of)) AS began,
    assumeNotNull((SELECT ended FROM of)) AS ended,
    traffic AS (
        SELECT toStartOfSecond(ts) AS second, sumIf(weight, verdict = 'pass') AS passed,
               sumIf(weight, verdict = 'drop') AS dropped, sumIf(weight, verdict = 'shadow') AS shadow,
               sum(weight * length) * 8 AS bits, uniq(source) AS sources, topK(1)(protocol)[1] AS protocol
        FROM packet_sample
        WHERE target != '' AND ts BETWEEN began - INTERVAL 5 SECOND AND ended + INTERVAL 5 SECOND
          AND ts BETWEEN {since:DateTime64(6, 'UTC')} AND {until:DateTime64(6, 'UTC')}
          AND isIPAddressInRange(
              if(position(target, '.') > 0, replaceOne(toString(destination), '::ffff:', ''), toString(destination)),
              multiIf(target = '', '::/128', position(target, '/') > 0, target,
                      concat(target, if(position(target, ':') > 0, '/128', '/32'))))
        GROUP BY second
    ),
    steps AS (
        SELECT toStartOfSecond(ts) AS second, arrayStringConcat(groupArray(concat(event, ' ', rule)), ', ') AS steps
        FROM attack_event WHERE attack = {attack:String} GROUP BY second
    )
SELECT second, passed, dropped, shadow, bits, sources, protocol, steps.steps AS steps
FROM traffic FULL JOIN steps USING (second) ORDER BY second
