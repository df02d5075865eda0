"""A server that stands in for one on the internet: it notes what is asked, answers, and fails on request."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = tuple[int, Any]
"""Status, and JSON or bytes."""


@dataclass
class Asked:
    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class StandIn:
    """What was asked, in order; `fail` may return another answer than the right one, or seconds to wait."""

    answer: Callable[[Asked], Answer]
    asked: list[Asked] = field(default_factory=list)
    fail: Callable[[Asked], Answer | float | None] = lambda asked: None
    url: str = ""

    def of(self, path: str) -> list[Asked]:
        return [asked for asked in self.asked if path in asked.path]


@contextmanager
def serving(answer: Callable[[Asked], Answer]) -> Iterator[StandIn]:
    stand_in = StandIn(answer)

    class Handler(BaseHTTPRequestHandler):
        def respond(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            while self.headers.get("Transfer-Encoding") == "chunked":
                chunk = self.rfile.read(int(self.rfile.readline(), 16))
                self.rfile.readline()
                body += chunk
                if not chunk:
                    break
            headers = {name.lower(): value for name, value in self.headers.items()}
            asked = Asked(self.command, self.path, headers, body)
            stand_in.asked.append(asked)
            failure = stand_in.fail(asked)
            if isinstance(failure, float):
                stand_in.answer(asked)  # it does what it should and is too slow to say so
                time.sleep(failure)
                return
            status, value = failure or stand_in.answer(asked)
            data = value if isinstance(value, bytes) else json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            if status in (301, 302, 307, 308):
                self.send_header("Location", "http://127.0.0.1:9/elsewhere")
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = do_PUT = do_HEAD = respond

        def log_message(self, *args: Any) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    stand_in.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield stand_in
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
