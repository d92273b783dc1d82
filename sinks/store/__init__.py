"""The ClickHouse engine in this process, behind the HTTP interface of a ClickHouse server.

A request's way: ``app`` (routes) → ``queries`` (its life) → ``request`` (who, what, with which settings) →
``statement`` (what kind of SQL) → ``select`` or ``insert`` on a connection of ``engine`` → ``answer``.
"""
