"""A proxy before an S3 server that does to requests what networks and servers do on bad days.

What is signed is passed on as it is, so the server sees the requests of its client.
"""

from __future__ import annotations

import dataclasses
import http.client
import re
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal

Kind = Literal["drop", "error", "reset", "truncate", "alter", "slow"]
_PIECE = 1 << 14
_ERROR = (
    b'<?xml version="1.0" encoding="UTF-8"?><Error><Code>InternalError</Code>'
    b"<Message>We encountered an internal error.</Message></Error>"
)
_PATIENCE_SECONDS = 300


@dataclasses.dataclass
class Fault:
    """What happens to requests.

    Attributes:
        kind: drop: the connection is reset before an answer; error: the answer is status 500;
            reset, truncate: the connection is reset or closed amid the body of the answer, or of
            the request if that has one; alter: a byte of the answer's body is another; slow:
            everything takes `seconds` more.
        method: of the requests.
        path: regular expression that is searched for in their path.
        left: how many requests more; it counts down.
        seconds: for slow ones.
        done: how many requests it happened to.
    """

    kind: Kind
    method: str = "GET"
    path: str = "/files/md5/../"
    left: int = 1
    seconds: float = 0.0
    done: int = 0


class FaultProxy:
    """A proxy on a free port of this machine.

    Args:
        port: of the server, on 127.0.0.1.
    """

    def __init__(self, port: int) -> None:
        self.faults: list[Fault] = []
        # Method and path of every request, in the order that they came.
        self.requests: list[tuple[str, str]] = []
        self._lock = threading.Lock()
        proxy = self

        class Handler(_Handler):
            upstream = port
            owner = proxy

        self._server = _Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def count(self, method: str, path: str = "/files/md5/../") -> int:
        """Return how many such requests have come."""
        with self._lock:
            return sum(
                1 for verb, where in self.requests if verb == method and re.search(path, where)
            )

    def take(self, method: str, path: str) -> Fault | None:
        """Note a request and return what is to happen to it."""
        with self._lock:
            self.requests.append((method, path))
            for fault in self.faults:
                if fault.left and fault.method == method and re.search(fault.path, path):
                    fault.left -= 1
                    fault.done += 1
                    return fault
        return None

    @contextmanager
    def injecting(self, *faults: Fault) -> Iterator[None]:
        """Let faults happen within the block."""
        self.faults = list(faults)
        try:
            yield
        finally:
            self.faults = []

    def __enter__(self) -> FaultProxy:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    # A client that was killed leaves half requests; they are no concern of the tests.
    block_on_close = False
    request_queue_size = 128

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing: connections that break are what this is for."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    upstream: int
    owner: FaultProxy

    def log_message(self, format: str, *args: object) -> None:
        """Keep the tests' output free of requests."""

    def _answer(self) -> None:
        fault = self.owner.take(self.command, self.path)
        kind = fault.kind if fault else ""
        if fault and kind == "slow":
            time.sleep(fault.seconds)
        if kind == "drop":
            return self._break(reset=True)
        length = int(self.headers.get("Content-Length") or 0)
        if kind in ("reset", "truncate") and length:
            self.rfile.read(length // 2)
            return self._break(reset=kind == "reset")
        body = self.rfile.read(length) if length else b""
        if kind == "error":
            return self._fail()
        server = http.client.HTTPConnection("127.0.0.1", self.upstream, timeout=_PATIENCE_SECONDS)
        try:
            self._ask(server, body)
            answer = server.getresponse()
            self.send_response_only(answer.status, answer.reason)
            for name, value in answer.getheaders():
                if name.lower() not in ("transfer-encoding", "connection"):
                    self.send_header(name, value)
            # Without it the end of the answer would be the end of the connection.
            whole = answer.read() if answer.length is None else None
            size = answer.length if whole is None else len(whole)
            assert size is not None
            if whole is not None:
                self.send_header("Content-Length", str(size))
            self.end_headers()
            if self.command != "HEAD":
                self._pass_on(answer, whole, size, kind)
        finally:
            server.close()

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _answer

    def _ask(self, server: http.client.HTTPConnection, body: bytes) -> None:
        server.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():
            # Answered here already.
            if name.lower() != "expect":
                server.putheader(name, value)
        server.endheaders(body or None)

    def _pass_on(
        self, answer: http.client.HTTPResponse, whole: bytes | None, size: int, kind: str
    ) -> None:
        done = 0
        altered = False
        while done < size:
            piece = answer.read(_PIECE) if whole is None else whole[done : done + _PIECE]
            if not piece:
                return self._break(reset=True)
            if kind in ("reset", "truncate") and done + len(piece) > size // 2:
                self.wfile.write(piece[: max(size // 2 - done, 0)])
                self.wfile.flush()
                return self._break(reset=kind == "reset")
            if kind == "alter" and not altered:
                piece = bytes([piece[0] ^ 1]) + piece[1:]
                altered = True
            self.wfile.write(piece)
            done += len(piece)
        return None

    def _fail(self) -> None:
        self.send_response_only(500)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(_ERROR)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(_ERROR)

    def _break(self, reset: bool) -> None:
        self.close_connection = True
        if reset:
            # Closed with this set, a socket sends a reset instead of an end.
            linger = struct.pack("ii", 1, 0)
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.connection.close()
