"""An S3 server for tests: moto's, with conditional writes made atomic."""

import threading
from collections.abc import Iterable
from typing import Any

from moto.moto_server.werkzeug_app import (
    DomainDispatcherApplication,
    MotoRequestHandler,
    create_backend_app,
)
from werkzeug.serving import make_server


class S3Server:
    """Answers on a free port of this machine until it is closed.

    moto looks whether an object is there and then writes it, in as many threads as there are
    requests: of several writers with ``If-None-Match`` two may win. S3 lets one win, so here
    requests that change something are answered one at a time.
    """

    def __init__(self) -> None:
        self._app = DomainDispatcherApplication(create_backend_app)
        self._one_writer = threading.Lock()
        self._server = make_server("127.0.0.1", 0, self._answer, True, request_handler=_Quiet)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    @property
    def endpoint(self) -> str:
        """Its address, for ``endpoint_url``."""
        return f"http://127.0.0.1:{self._server.server_port}"

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def _answer(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        if environ["REQUEST_METHOD"] in ("GET", "HEAD"):
            return self._app(environ, start_response)  # type: ignore[no-any-return]
        with self._one_writer:
            return list(self._app(environ, start_response))


class _Quiet(MotoRequestHandler):  # type: ignore[misc]
    def log(self, type: str, message: str, *args: Any) -> None:  # noqa: A002 - werkzeug's name
        """Print nothing: a line per request would hide what a failing test says."""
