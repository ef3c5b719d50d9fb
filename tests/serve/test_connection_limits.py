"""Clients that are slow, silent, gone or broken harm nobody else: raw sockets against a server."""

import resource
import socket
import time
from collections.abc import Callable

import httpx
import pytest
from serving import MODEL_NAME, Served, Start, is_idle, wait_until

from lmcore.serve import connection_limits as connections

pytestmark = pytest.mark.xdist_group("serve")

LONG = b'{"prompt": "a", "max_tokens": 4000, "n": 2, "seed": 1, "temperature": 0%s}'


def post(body: bytes, further: str = "") -> bytes:
    head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n{further}"
    return head.encode() + b"Content-Length: %d\r\n\r\n" % len(body) + body


def is_closed(connection: socket.socket) -> bool:
    """Whether the other side has hung up, perhaps after some words."""
    connection.setblocking(False)
    try:
        while connection.recv(65536):
            pass
    except BlockingIOError:
        return False
    except ConnectionError:
        pass
    return True


def is_well(served: Served) -> bool:
    answer = served.post({"prompt": "the cat", "max_tokens": 3, "seed": 1})
    return answer.status_code == 200 and answer.json()["usage"]["completion_tokens"] == 3


@pytest.mark.parametrize("stream", [False, True])
def test_who_hangs_up_frees_the_rows(start: Start, stream: bool) -> None:
    """While its texts are decoded, and while they wait in line."""
    served = start(delay=0.01, batch=2, queue=8)
    body = LONG % (b', "stream": true' if stream else b"")
    clients = [served.connect() for _ in range(3)]
    for client in clients:
        client.sendall(post(body))
    wait_until(lambda: served.read_metric("lmcore_waiting_texts") == 4)
    assert served.read_metric("lmcore_running_texts") == 2
    clients[1].close()  # waits
    wait_until(lambda: served.read_metric("lmcore_waiting_texts") == 2)
    if stream:
        assert clients[0].recv(65536).startswith(b"HTTP/1.1 200 OK")
    clients[0].close()  # is decoded
    wait_until(lambda: served.read_metric("lmcore_waiting_texts") == 0)
    assert served.read_metric("lmcore_running_texts") == 2
    clients[2].close()
    wait_until(lambda: is_idle(served))
    assert is_well(served)
    lines = httpx.get(f"{served.address}/metrics").text
    gone = 'lmcore_requests_total{path="/v1/completions",status="499"}'
    assert f"{gone} {1 if stream else 3}.0" in lines


def test_a_thousand_silent_connections_keep_nobody_out(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """Idle ones, and such as have sent half a head; that each is closed after a time is shown below."""
    monkeypatch.setattr(connections, "RECEIVE_SECONDS", 600.0)  # however long it takes to open them
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 4096:
        pytest.skip(f"needs 4,096 open files, the system's limit is {hard}")
    served = start()
    silent = []
    for number in range(1000):
        connection = served.connect()
        if number % 2:
            connection.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-")
        silent.append(connection)
    assert served.read_metric("lmcore_connections") > 1000
    assert all(is_well(served) for _ in range(5))
    for connection in silent:
        connection.close()
    wait_until(lambda: served.read_metric("lmcore_connections") < 3)


def test_whoever_is_silent_for_longest_makes_room(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "MAX_CONNECTIONS", 5)
    served = start(delay=0.01)
    silent = [served.connect() for _ in range(5)]
    assert is_well(served)
    assert is_closed(silent[0])
    assert not is_closed(silent[-1])
    for connection in silent:
        connection.close()


def test_more_than_can_be_served_are_told_so(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "MAX_CONNECTIONS", 3)
    served = start(delay=0.01)
    clients = [served.connect() for _ in range(3)]
    for client in clients:
        client.sendall(post(LONG % b', "stream": true'))
        assert client.recv(20).startswith(b"HTTP/1.1 200 OK")
    answer = httpx.get(f"{served.address}/health")
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "overloaded")
    assert answer.headers["Retry-After"] == "1"
    clients[0].close()
    wait_until(lambda: httpx.get(f"{served.address}/health").status_code == 200)
    for client in clients:
        client.close()


def drip(connection: socket.socket, data: bytes) -> None:
    """Byte by byte, as long as the other side listens."""
    for place in range(len(data)):
        try:
            connection.sendall(data[place : place + 1])
        except ConnectionError:
            return
        time.sleep(0.05)


def send_half_a_head(connection: socket.socket) -> None:
    connection.sendall(b"GET /health HTTP/1.1\r\nHo")


def send_half_a_body(connection: socket.socket) -> None:
    connection.sendall(post(b'{"prompt": "a"}')[:-4])


def send_slowly(connection: socket.socket) -> None:
    drip(connection, post(b'{"prompt": "a"}'))


def send_half_a_second_request(connection: socket.socket) -> None:
    connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert connection.recv(65536).startswith(b"HTTP/1.1 200 OK")
    time.sleep(1.2)  # longer than a request may take, and idle connections may be
    send_half_a_head(connection)


def send_a_body_without_end(connection: socket.socket) -> None:
    """It is answered by its head, and thrown away as it comes."""
    connection.sendall(post(b"")[: -len("Content-Length: 0\r\n\r\n")] + b"Content-Length: 99999999999\r\n\r\n")
    assert connection.recv(65536).startswith(b"HTTP/1.1 413")
    drip(connection, b"a" * 100)


@pytest.mark.parametrize(
    "send", [send_half_a_head, send_half_a_body, send_slowly, send_half_a_second_request, send_a_body_without_end]
)
def test_a_request_that_does_not_become_whole(
    start: Start, monkeypatch: pytest.MonkeyPatch, send: Callable[[socket.socket], None]
) -> None:
    monkeypatch.setattr(connections, "RECEIVE_SECONDS", 1.0)
    served = start()
    with served.connect() as connection:
        send(connection)
        assert is_well(served)
        wait_until(lambda: is_closed(connection))


def test_a_long_answer_is_not_cut_off(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """The time to send a request is over long before."""
    monkeypatch.setattr(connections, "RECEIVE_SECONDS", 0.3)
    served = start(delay=0.02)
    answer = served.post({"prompt": "a", "max_tokens": 60, "temperature": 0})
    assert answer.json()["choices"][0]["finish_reason"]


def test_who_takes_nothing_of_the_answer_is_hung_up_on(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "STALL_SECONDS", 0.5)
    served = start(queue=100, max_tokens=4000)
    with socket.socket() as deaf:
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        deaf.connect(("127.0.0.1", served.port))
        deaf.sendall(post(b'{"prompt": "a", "max_tokens": 4000, "n": 5, "logprobs": 20, "stream": true}'))
        wait_until(lambda: served.read_metric("lmcore_running_texts") > 0)
        wait_until(lambda: is_idle(served))
    assert served.read_metric("lmcore_connections") < 3
    assert is_well(served)


@pytest.mark.parametrize(
    "data", [b"\x16\x03\x01\x02\x00\x01", b"GET\r\n\r\n", b"\r\n\r\n\r\n", b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 20_000]
)
def test_no_http(served: Served, data: bytes) -> None:
    with served.connect() as connection:
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        wait_until(lambda: is_closed(connection))
    assert is_well(served)


def test_requests_on_one_connection(served: Served) -> None:
    """One behind the other, sent at once."""
    body = b'{"prompt": "the cat", "max_tokens": 3, "seed": 1}'
    with served.connect() as connection:
        connection.sendall(post(body) + post(body) + post(body, "Connection: close\r\n"))
        heard = b""
        while part := connection.recv(65536):
            heard += part
    assert heard.count(b"HTTP/1.1 200 OK") == 3
    assert heard.count(f'"model":"{MODEL_NAME}"'.encode()) == 3
