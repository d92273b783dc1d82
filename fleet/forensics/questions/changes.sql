-- What changed before that moment?
-- Everything that was changed on purpose, or changed by itself, in the window, the newest first: documents that
-- arrived, rules and probes, the balancer's rings and reals, starts of hosts. `--until` is the moment.
-- @host String = '': only these hosts, with commas between them
-- @since 1h
SELECT ts, host, what, subject, change, who, reason FROM (
    SELECT ts, host, concat('document ', kind) AS what, id AS subject, toString(state) AS change, author AS who,
           reason
    FROM applied
    UNION ALL
    SELECT ts, host, 'rule', rule, toString(event), author, reason FROM filter_event
    UNION ALL
    SELECT ts, host, 'balancer', concat(vip, ' ', real), toString(event), '', toString(reason) FROM lb_event
    UNION ALL
    SELECT ts, host, 'probe', probe, toString(event), '', reason FROM probe_event
    UNION ALL
    SELECT ts, host, 'overhead', probe, toString(action), '', reason FROM overhead_event
    UNION ALL
    SELECT ts, host, 'out of memory', comm, 'killed', '', cgroup FROM oom_kill
    UNION ALL
    SELECT min(ts), host, 'host', kernel, 'collector started', '', version FROM host
    GROUP BY host, kernel, version, started
)
WHERE ts BETWEEN {since:DateTime64(6, 'UTC')} AND {until:DateTime64(6, 'UTC')} AND ({host:String} = '' OR has(splitByChar(',', {host:String}), host))
ORDER BY ts DESC LIMIT 500
