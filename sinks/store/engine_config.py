"""The engine's own configuration files: limits, defaults of tables, and what a client may do.

The engine in process knows one user; its two roles tell our own upkeep (admin) from everything that comes
by HTTP (client).
"""

from pathlib import Path
from xml.sax.saxutils import escape

from schemas.config import Store

# Table engines whose data stays in the store; none that reads host files or the network.
_ENGINES = ["Memory", "Null", "Set", "Join", "Buffer", "Merge", "Dictionary", "View", "MaterializedView"]
_ENGINES += ["Log", "TinyLog", "StripeLog", "GenerateRandom"]
_ENGINES += [
    f"{kind}MergeTree"
    for kind in ("", "Replacing", "Summing", "Aggregating", "Collapsing", "VersionedCollapsing", "Coalescing")
]
CLIENT_ROLE = "client"
# No sources, no backup to a path, no users, no shutdown; and what the engine needs of itself stays.
_CLIENT = [
    "GRANT SHOW, SELECT, INSERT, ALTER, CREATE DATABASE, CREATE TABLE, CREATE VIEW, CREATE DICTIONARY, "
    "CREATE FUNCTION, DROP, UNDROP TABLE, TRUNCATE, OPTIMIZE, KILL QUERY, SYSTEM, dictGet ON *.*",
    "GRANT CREATE ARBITRARY TEMPORARY TABLE ON *.*",
    *(f"GRANT TABLE ENGINE ON {engine}" for engine in _ENGINES),
    "REVOKE SYSTEM SHUTDOWN, SYSTEM FAILPOINT ON *.*",
    *(
        f"REVOKE ALTER, CREATE, DROP, TRUNCATE, INSERT ON {database}.*"
        for database in ("system", "information_schema", "INFORMATION_SCHEMA")
    ),
    "REVOKE DROP DATABASE ON default.*",
]
# Settings that name a file or an address: nobody may change them.
_FIXED = [
    "format_schema",
    "format_template_row",
    "format_template_resultset",
    "format_avro_schema_registry_url",
    "input_format_record_errors_file_path",
]


def write(directory: Path, settings: Store) -> Path:
    """Write ``config.xml`` and ``users.xml`` into ``directory``; returns the first's path."""
    users = directory / "users.xml"
    config = directory / "config.xml"
    _replace(users, _users(settings))
    _replace(config, _config(directory, users, settings))
    return config


def _replace(file: Path, text: str) -> None:
    fresh = file.with_suffix(".new")
    fresh.write_text(text)
    fresh.replace(file)


def _config(directory: Path, users: Path, settings: Store) -> str:
    fsync = "<fsync_after_insert>1</fsync_after_insert><fsync_part_directory>1</fsync_part_directory>"
    return f"""<clickhouse>
  <users_config>{escape(str(users))}</users_config>
  <user_files_path>{escape(str(directory / "user_files"))}/</user_files_path>
  <max_server_memory_usage>{settings.max_memory_mb << 20}</max_server_memory_usage>
  <mark_cache_size>{64 << 20}</mark_cache_size>
  <background_pool_size>{max(2, settings.threads)}</background_pool_size>
  <merge_tree>
    <non_replicated_deduplication_window>10000</non_replicated_deduplication_window>
    {fsync if settings.fsync else ""}
  </merge_tree>
</clickhouse>
"""


def _users(settings: Store) -> str:
    fixed = "".join(f"<{name}><const/></{name}>" for name in _FIXED)
    grants = "".join(f"<query>{grant}</query>" for grant in _CLIENT)
    return f"""<clickhouse>
  <profiles><default>
    <max_threads>{settings.threads}</max_threads>
    <constraints>{fixed}</constraints>
  </default></profiles>
  <quotas><default></default></quotas>
  <roles>
    <admin><grants><query>GRANT ALL ON *.*</query></grants></admin>
    <{CLIENT_ROLE}><grants>{grants}</grants></{CLIENT_ROLE}>
  </roles>
  <users><default>
    <password></password>
    <networks><ip>::/0</ip></networks>
    <profile>default</profile>
    <quota>default</quota>
    <grants><query>GRANT admin, {CLIENT_ROLE}</query></grants>
  </default></users>
</clickhouse>
"""
