"""Nothing a client sends reads the host, leaves the database or takes the engine down."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from asking import code, send
from conftest import StoreProcess, free_port

from sinks.store import confine
from sinks.store.errors import StoreError
from sinks.store.statement import parse

SECRET = "a-line-that-only-this-host-has"

# {file} is a file with SECRET in it, {directory} its directory.
REACHES_OUT = [
    "SELECT * FROM file('{file}', 'LineAsString')",
    "SELECT file('{file}')",
    "SELECT FiLe /* x */ ('{file}')",
    "SELECT * FROM \"file\" ('{file}', LineAsString)",
    "SELECT * FROM `fi\\le`('{file}', LineAsString)",
    "SELECT * FROM `f\\x69le`('{file}', LineAsString)",
    "SELECT `f\\x69le`('{file}')",
    "SELECT * FROM '{file}'",
    "SELECT * FROM `{file}`",
    "SELECT * FROM default.`{file}`",
    "SELECT * FROM Python(password)",
    "SELECT * FROM `python`(password)",
    "SELECT * FROM fileCluster('default', '{file}', LineAsString)",
    "SELECT * FROM icebergLocal('{directory}')",
    "SELECT * FROM deltaLakeLocal('{directory}')",
    "SELECT * FROM filesystem('{directory}')",
    "SELECT * FROM sqlite('{file}', 't')",
    "SELECT * FROM executable('cat {file}', TSV, 'a String')",
    "SELECT * FROM url('http://127.0.0.1:{port}/', LineAsString)",
    "SELECT * FROM remote('127.0.0.1:{port}', system.one)",
    "SELECT * FROM s3('http://127.0.0.1:{port}/bucket/key', LineAsString)",
    "SELECT * FROM mysql('127.0.0.1:{port}', 'a', 'b', 'c', 'd')",
    "SELECT * FROM postgresql('127.0.0.1:{port}', 'a', 'b', 'c', 'd')",
    "SELECT * FROM mongodb('127.0.0.1:{port}', 'a', 'b', 'c', 'd', 'e String')",
    "SELECT * FROM redis('127.0.0.1:{port}', 'k', 'k String')",
    "SELECT 1 INTO OUTFILE '{directory}/out'",
    "SELECT 1 INTO -- x\n OUTFILE '{directory}/out'",
    "INSERT INTO safety.t FROM INFILE '{file}' FORMAT LineAsString",
    "INSERT INTO FUNCTION file('{directory}/out', CSV) SELECT 1",
    "INSERT INTO FUNCTION url('http://127.0.0.1:{port}/', CSV) SELECT 1",
    "INSERT INTO FUNCTION file('{directory}/out', CSV, 'a UInt8') VALUES (1)",
    "CREATE TABLE safety.o (a String) ENGINE = File(LineAsString, '{file}')",
    "CREATE TABLE safety.o (a String) ENGINE = URL('http://127.0.0.1:{port}', CSV)",
    "CREATE TABLE safety.o (a String) ENGINE = Kafka('127.0.0.1:{port}', 'a', 'b', 'CSV')",
    "CREATE TABLE safety.o (a String) ENGINE = Executable('cat', TSV)",
    "CREATE TABLE safety.o (a String) ENGINE = MergeTree ORDER BY a "
    "SETTINGS disk = disk(type = 'local', path = '/x')",
    "CREATE TABLE safety.o (a String) ENGINE = MergeTree ORDER BY a "
    "SETTINGS disk = disk(type = 'web', endpoint = 'http://127.0.0.1:{port}/')",
    "CREATE TEMPORARY TABLE o (a String) ENGINE = File(LineAsString, '{file}')",
    "CREATE VIEW safety.v AS SELECT * FROM file('{file}', 'LineAsString')",
    "CREATE FUNCTION reads AS (x) -> file(x)",
    "CREATE DATABASE o ENGINE = Filesystem('{directory}')",
    "CREATE DATABASE o ENGINE Filesystem('{directory}')",
    "CREATE DATABASE IF NOT EXISTS o ENGINE = SQLite('{directory}/sqlite')",
    "CREATE DATABASE o ENGINE = MySQL('127.0.0.1:{port}', 'a', 'b', 'c')",
    "ATTACH DATABASE o ENGINE = Filesystem('{directory}')",
    "ATTACH TABLE safety.o FROM '{directory}' (a UInt8) ENGINE = MergeTree ORDER BY a",
    "CREATE DICTIONARY safety.d (a UInt64, b String) PRIMARY KEY a SOURCE(FILE(path '{file}' format 'TSV')) "
    "LAYOUT(FLAT()) LIFETIME(0)",
    "CREATE DICTIONARY safety.d (a UInt64, b String) PRIMARY KEY a SOURCE(HTTP(url 'http://127.0.0.1:{port}' "
    "format 'TSV')) LAYOUT(FLAT()) LIFETIME(0)",
    "CREATE DICTIONARY safety.d (a UInt64, b String) PRIMARY KEY a "
    "SOURCE(REDIS(host '127.0.0.1' port {port})) LAYOUT(FLAT()) LIFETIME(0)",
    "BACKUP DATABASE default TO File('{directory}/backup')",
    "RESTORE DATABASE default FROM File('{directory}/backup')",
    "SELECT 1 FORMAT Template SETTINGS format_template_resultset = '{file}'",
    "SELECT 1 FORMAT Protobuf SETTINGS format_schema = '{file}:x'",
    "SET ROLE admin",
    "SET/**/ROLE ALL",
    "SET ROLE DEFAULT",
    "GRANT ALL ON *.* TO default",
    "CREATE USER somebody",
    "ALTER USER default IDENTIFIED BY 'x'",
    "CREATE NAMED COLLECTION c AS a = 1",
    "SELECT addressToLine(1) SETTINGS allow_introspection_functions = 1",
    "SELECT * FROM system.users",
    "SYSTEM SHUTDOWN",
    "SYSTEM KILL",
    "DROP DATABASE default",
    "DETACH DATABASE default",
    "DROP DATABASE system",
    "DROP TABLE system.one",
    "TRUNCATE DATABASE system",
    "DROP DATABASE INFORMATION_SCHEMA",
    "EXECUTE AS admin SELECT 1",
    # Ways to a function that no lexer sees: the kernel keeps the process from the file.
    "SELECT arrayMap(file, ['{file}'])",
    "SELECT * APPLY(file) FROM (SELECT '{file}' AS path)",
    "SELECT COLUMNS('path') APPLY file FROM (SELECT '{file}' AS path)",
    "SELECT 1 SETTINGS additional_result_filter = 'file('{file}') != '''",
    "SELECT arrayMap(file, ['/etc/passwd'])",
]


@pytest.fixture(scope="module")
def place(store: StoreProcess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, object]]:
    """A readable file with a secret, and a port that tells whether anybody came."""
    directory = tmp_path_factory.mktemp("host")
    file = directory / "secret.txt"
    file.write_text(SECRET + "\n")
    send(store, "CREATE DATABASE safety")
    send(store, "CREATE TABLE safety.t (a String) ENGINE = MergeTree ORDER BY a")
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        listening.setblocking(False)
        yield {"directory": directory, "file": file, "port": listening.getsockname()[1]}
        with pytest.raises(BlockingIOError):
            listening.accept()
    assert [each.name for each in directory.iterdir()] == ["secret.txt"]
    assert send(store, "SELECT count() FROM safety.t")[2] == b"0\n"
    send(store, "DROP DATABASE safety")


@pytest.mark.parametrize("statement", REACHES_OUT)
def test_reaching_out_is_refused(store: StoreProcess, place: dict[str, object], statement: str) -> None:
    text = statement
    for name, value in place.items():
        text = text.replace("{" + name + "}", str(value))
    status, headers, body = send(store, text, max_execution_time="5")
    assert status != 200
    assert "x-clickhouse-exception-code" in headers
    assert SECRET not in body.decode(errors="replace")
    assert send(store, "SELECT 1")[2] == b"1\n"


def test_a_dictionarys_query_reads_no_file(store: StoreProcess, place: dict[str, object]) -> None:
    query = f"SELECT toUInt64(1) AS a, file('{place['file']}') AS b".replace("'", "\\'")
    made = "CREATE DICTIONARY safety.read (a UInt64, b String) PRIMARY KEY a "
    made += f"SOURCE(CLICKHOUSE(QUERY '{query}')) LAYOUT(FLAT()) LIFETIME(0)"
    assert send(store, made)[0] == 200
    assert code(send(store, "SELECT * FROM safety.read")) == 76
    send(store, "DROP DICTIONARY safety.read")


def test_an_inserts_errors_are_written_nowhere(store: StoreProcess, place: dict[str, object]) -> None:
    file = f"{place['directory']}/errors"
    answer = send(
        store, "x\n1\n", query="INSERT INTO safety.n FORMAT CSV", input_format_allow_errors_num="9",
        input_format_record_errors_file_path=file,
    )  # fmt: skip
    assert code(answer) == 452 and not Path(file).exists()


def test_a_kernel_without_landlock_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(confine, "version", lambda: 1)
    assert not confine.apply(tmp_path)
    (tmp_path / "file").write_text("still ours to read")
    assert (tmp_path / "file").read_text()


ALLOWED = [
    'SELECT \'file(x)\', "a" FROM (SELECT 1 AS "a") -- python(x)',
    "SELECT 'it''s INTO OUTFILE' /* SET ROLE */",
    "SELECT file FROM (SELECT 1 AS file)",
    "SELECT $a$ file('x') $a$",
    "SELECT count() FROM system.tables WHERE engine = 'File'",
    "CREATE DATABASE allowed",
    "CREATE TABLE allowed.t (a UInt8) ENGINE = ReplacingMergeTree ORDER BY a",
    "CREATE MATERIALIZED VIEW allowed.m ENGINE = SummingMergeTree ORDER BY a AS SELECT a FROM allowed.t",
    "CREATE DICTIONARY allowed.d (a UInt64) PRIMARY KEY a SOURCE(CLICKHOUSE(DB 'allowed' TABLE 't')) "
    "LAYOUT(FLAT()) LIFETIME(0)",
    "SELECT dictHas('allowed.d', 1)",
    "ALTER TABLE allowed.t ADD COLUMN b String",
    "OPTIMIZE TABLE allowed.t FINAL",
    "CREATE TABLE allowed.memory ENGINE = Memory AS SELECT 1 AS a",
    "RENAME TABLE allowed.memory TO allowed.renamed",
    "DETACH TABLE allowed.renamed",
    "ATTACH TABLE allowed.renamed",
    "DETACH DATABASE allowed",
    "ATTACH DATABASE allowed",
    "SYSTEM FLUSH LOGS",
    "KILL QUERY WHERE 0",
    "EXPLAIN SELECT 1",
    "DROP DATABASE allowed",
    "CREATE DATABASE allowed ENGINE = Memory",
    "DROP DATABASE allowed",
]


def test_ordinary_statements_are_allowed(store: StoreProcess) -> None:
    for text in ALLOWED:
        status, _, body = send(store, text)
        assert status == 200, (text, body)


@pytest.mark.parametrize("quote", "‘’“”")
def test_odd_quotes_are_refused(quote: str) -> None:
    with pytest.raises(StoreError, match="ASCII quotes"):
        parse(f"SELECT {quote} ' {quote} , file('/etc/passwd') , ' '".encode())


def store_command(tmp_path: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """`bpfleet store`, expected to give up."""
    clean = {name: text for name, text in os.environ.items() if not name.startswith("BPFLEET_")}
    settings = {"BPFLEET_STATE_DIR": str(tmp_path), "BPFLEET_STORE_PORT": str(free_port())} | environment
    command = [sys.executable, "-m", "fleet", "store"]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=60, env=clean | settings, check=False
    )


@pytest.mark.parametrize(
    ("environment", "said", "code"),
    [
        ({"BPFLEET_STORE_LISTEN": "0.0.0.0"}, "without a password; set store.password_file", 2),
        ({"BPFLEET_STORE_LISTEN": "::"}, "without a password; set store.password_file", 2),
        ({"BPFLEET_STORE_LISTEN": "no.such.host.invalid", "BPFLEET_STORE_PASSWORD_FILE": "/etc/hostname"},
         "cannot listen on no.such.host.invalid", 1),
        ({"BPFLEET_STORE_PASSWORD_FILE": "/nowhere"}, "cannot read the password file /nowhere", 2),
        ({"BPFLEET_STATE_DIR": "/proc/nowhere"}, "cannot write /proc/nowhere/store", 1),
        ({"BPFLEET_STORE_PORT": "70000"}, "store.port", 2),
    ],
)  # fmt: skip
def test_why_it_will_not_start(tmp_path: Path, environment: dict[str, str], said: str, code: int) -> None:
    done = store_command(tmp_path, **environment)
    assert done.stderr.startswith("bpfleet: ")
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert done.returncode == code


def test_a_taken_port_is_said(tmp_path: Path, store: StoreProcess) -> None:
    done = store_command(tmp_path, BPFLEET_STORE_PORT=str(store.port))
    assert f"cannot listen on 127.0.0.1:{store.port} (Address already in use); stop what" in done.stderr
    assert done.returncode == 1


def test_broken_data_is_said(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "data").write_text("not a directory")
    done = store_command(tmp_path)
    assert done.stderr.splitlines()[-1].startswith(f"bpfleet: cannot open the store in {tmp_path}/store: ")
    assert done.returncode == 1
