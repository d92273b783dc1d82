"""One HTTP request to the store, and what a refusal must look like."""

import http.client
from urllib.parse import urlencode

from conftest import StoreProcess

Answer = tuple[int, dict[str, str], bytes]


def send(
    store: StoreProcess,
    body: bytes | str = b"",
    method: str = "POST",
    path: str = "/",
    headers: dict[str, str] | None = None,
    **url: str,
) -> Answer:
    connection = http.client.HTTPConnection("127.0.0.1", store.port, timeout=30)
    try:
        data = body.encode() if isinstance(body, str) else body
        connection.request(method, f"{path}?{urlencode(url)}", data, headers or {})
        answer = connection.getresponse()
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
    finally:
        connection.close()


def code(answer: Answer) -> int:
    status, headers, body = answer
    assert status >= 400
    number = int(headers["x-clickhouse-exception-code"])
    assert body.startswith(f"Code: {number}. DB::Exception: ".encode())
    return number


def into(form: str, table: str = "bad.t") -> dict[str, str]:
    return {"query": f"INSERT INTO {table} FORMAT {form}"}
