"""An S3 server for tests: moto's, with conditional writes made atomic, and faults on demand."""

import os
import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from moto.moto_server.werkzeug_app import (
    DomainDispatcherApplication,
    MotoRequestHandler,
    create_backend_app,
)
from werkzeug.serving import make_server

App = Callable[[dict[str, Any], Any], Iterable[bytes]]
Disturbance = Callable[[App, dict[str, Any], Any], Iterable[bytes]]
"""Answers a request in the place of the server."""


@dataclass
class Fault:
    """Which requests are disturbed, and how.

    Attributes:
        disturb: Answers in the place of the server.
        after: So many of the requests that match go well first.
        every: Of the others each n-th is disturbed.
        times: At most so many are; None is no end.
        methods: That match.
        matching: Pattern that is looked for in ``/bucket/key?query``.
        hits: How many were disturbed.
    """

    disturb: Disturbance
    after: int = 0
    every: int = 1
    times: int | None = None
    methods: Collection[str] = ("GET", "HEAD", "PUT", "POST", "DELETE")
    matching: str = ""
    hits: int = field(default=0, init=False)
    _seen: int = field(default=0, init=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False)

    def is_due(self, environ: dict[str, Any]) -> bool:
        """Count a request and say whether it is disturbed."""
        path = f"{environ['PATH_INFO']}?{environ['QUERY_STRING']}"
        if environ["REQUEST_METHOD"] not in self.methods or not re.search(self.matching, path):
            return False
        with self._lock:
            self._seen += 1
            position = self._seen - self.after
            if position <= 0 or position % self.every or self.hits == self.times:
                return False
            self.hits += 1
            return True


class S3Server:
    """Answers on a free port of this machine until it is closed.

    moto looks whether an object is there and then writes it, in as many threads as there are
    requests: of several writers with ``If-None-Match`` two may win. S3 lets one win, so here
    requests that change something are answered one at a time.

    Attributes:
        reads: Of every GET the path, and the range of bytes that was asked for.
    """

    def __init__(self) -> None:
        self._app = DomainDispatcherApplication(create_backend_app)
        self._one_writer = threading.Lock()
        self.reads: list[tuple[str, str]] = []
        self._fault: Fault | None = None
        self._server = make_server("127.0.0.1", 0, self._answer, True, request_handler=_Quiet)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    @property
    def endpoint(self) -> str:
        """Its address, for ``endpoint_url``."""
        return f"http://127.0.0.1:{self._server.server_port}"

    @contextmanager
    def disturbed(self, fault: Fault) -> Iterator[Fault]:
        """Disturb requests while the block runs."""
        self._fault = fault
        try:
            yield fault
        finally:
            self._fault = None

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def _answer(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        if environ["REQUEST_METHOD"] == "GET":
            self.reads.append((environ["PATH_INFO"], environ.get("HTTP_RANGE", "")))
        fault = self._fault
        if fault is not None and fault.is_due(environ):
            return fault.disturb(self._undisturbed, environ, start_response)
        return self._undisturbed(environ, start_response)

    def _undisturbed(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        if environ["REQUEST_METHOD"] in ("GET", "HEAD"):
            return self._app(environ, start_response)  # type: ignore[no-any-return]
        with self._one_writer:
            return list(self._app(environ, start_response))


def refuse(status: int, code: str, message: str = "by the test") -> Disturbance:
    """Answer with an error as S3 writes it, the request left undone."""

    def disturb(app: App, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        _read_body(environ)
        body = f"<Error><Code>{code}</Code><Message>{message}</Message></Error>".encode()
        if environ["REQUEST_METHOD"] == "HEAD":
            body = b""
        headers = [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))]
        start_response(f"{status} Refused", headers)
        return [body]

    return disturb


def reset_before(app: App, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    """Reset the connection, the request left undone."""
    raise _hang_up(environ, reset=True)


def reset_after(app: App, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    """Do what was asked and reset the connection: the answer is lost."""
    list(app(environ, lambda status, headers, exc_info=None: None))
    raise _hang_up(environ, reset=True)


def reset_in_body(app: App, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    """Reset the connection in the middle of the answer's body."""
    return _half(app, environ, start_response, reset=True)


def cut_body(app: App, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    """End the answer in the middle of its body, whose length was promised."""
    return _half(app, environ, start_response, reset=False)


def short_body(app: App, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    """Answer half of the body, as if it were the whole: a proxy that lost its own connection."""
    answered: list[Any] = []
    body = b"".join(app(environ, lambda *args: answered.append(args)))
    status, headers = answered[0][:2]
    body = body[: len(body) // 2] if status.startswith("206") else body
    others = [(name, value) for name, value in headers if name.lower() != "content-length"]
    start_response(status, [*others, ("Content-Length", str(len(body)))])
    return [body]


def wait(seconds: float) -> Disturbance:
    """Answer late."""

    def disturb(app: App, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        answer = app(environ, start_response)
        time.sleep(seconds)
        return answer

    return disturb


def without_metadata(app: App, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    """Do what was asked, keep no metadata, and lose the answer."""
    for name in [name for name in environ if name.startswith("HTTP_X_AMZ_META_")]:
        del environ[name]
    return reset_after(app, environ, start_response)


def without_conditions(app: App, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    """Pass over ``If-None-Match``, as stores do that do not know it."""
    environ.pop("HTTP_IF_NONE_MATCH", None)
    return app(environ, start_response)


def _half(
    app: App, environ: dict[str, Any], start_response: Any, *, reset: bool
) -> Iterator[bytes]:
    body = b"".join(app(environ, start_response))
    yield body[: len(body) // 2]
    raise _hang_up(environ, reset=reset)


def _read_body(environ: dict[str, Any]) -> None:
    environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))


def _hang_up(environ: dict[str, Any], *, reset: bool) -> ConnectionResetError:
    connection: socket.socket = environ["werkzeug.socket"]
    if reset:  # closing with a linger of 0 seconds sends RST in place of FIN
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    # The server goes on with its end of a pair that nobody reads: its own ends at once.
    ours, theirs = socket.socketpair()
    theirs.close()
    os.dup2(ours.fileno(), connection.fileno())
    ours.close()
    return ConnectionResetError("hung up by the test")


class _Quiet(MotoRequestHandler):  # type: ignore[misc]
    def log(self, type: str, message: str, *args: Any) -> None:  # noqa: A002 - werkzeug's name
        """Print nothing: a line per request would hide what a failing test says."""
