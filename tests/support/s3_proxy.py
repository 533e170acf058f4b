"""A proxy before an S3 server: it lists what passes, and does to chosen requests what stores and networks do.

A request reaches the server as it was signed, with the Host that the client has named.
"""

from __future__ import annotations

import contextlib
import http.client
import select
import ssl
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Condition, Lock, Thread
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from support.helpers import reset

PIECE = 64 << 10


@dataclass
class Request:
    """A request to the server, and its outcome."""

    method: str
    # The key with the bucket before it, as people write it.
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    # Bytes of the body that came in.
    received: int = 0
    # 0 while it is on its way, and for ever where the proxy has not answered.
    status: int = 0
    # The fault that the proxy has caused to it.
    fault: str = ""

    @property
    def part(self) -> int | None:
        """The number of the part that it brings."""
        number = self.query.get("partNumber")
        return int(number) if self.method == "PUT" and number else None

    @property
    def access_key(self) -> str:
        """By whom it was signed."""
        return self.headers.get("authorization", "").partition("Credential=")[2].partition("/")[0]


Chooses = Callable[[Request], bool]


@dataclass
class Fault:
    """A fault of some requests: of the first `times` of those that are chosen, after the first `after`."""

    name: str
    chooses: Chooses
    times: int
    after: int
    details: dict[str, Any]
    met: int = 0

    @property
    def struck(self) -> int:
        """Return the number of requests that it was caused to."""
        return min(max(self.met - self.after, 0), self.times)


def any_request(_: Request) -> bool:
    return True


def puts(request: Request) -> bool:
    """Return whether it brings bytes: an object or a part of one."""
    return request.method == "PUT"


def parts(request: Request) -> bool:
    return request.part is not None


def completes(request: Request) -> bool:
    """Return whether it makes an object of parts."""
    return request.method == "POST" and "uploadId" in request.query


def begins(request: Request) -> bool:
    """Return whether it begins an upload in parts."""
    return request.method == "POST" and "uploads" in request.query


def of(name: str, method: str = "") -> Chooses:
    """Requests for one object."""
    return lambda request: request.path.endswith(name) and request.method.startswith(method)


def lists(request: Request) -> bool:
    """Return whether it asks what objects there are."""
    return request.method == "GET" and "list-type" in request.query


# Faults that pass, and what there is to say of them.
PASSING: list[tuple[str, dict[str, Any]]] = [
    ("refuse", {"status": 503, "code": "SlowDown"}),
    ("refuse", {"status": 500, "code": "InternalError"}),
    ("refuse", {"status": 503, "code": "ServiceUnavailable"}),
    ("refuse", {"status": 502, "code": "BadGateway"}),
    ("refuse", {"status": 429, "code": "TooManyRequests"}),
    ("refuse", {"status": 400, "code": "RequestTimeout"}),
    ("reset", {"at": 0}),
    ("reset", {"at": 100_000}),
    ("damage", {}),
    ("lose answer", {}),
    ("cut", {}),
    ("delay", {"seconds": 0.3}),
]


def name_of_fault(fault: tuple[str, dict[str, Any]]) -> str:
    name, details = fault
    return f"{name} {details.get('code', details.get('at', ''))}".strip()


@dataclass
class S3Proxy:
    """Passes requests on to a server at `port`; `prefix` is a path below which it does so."""

    to: int
    prefix: str = ""
    certificate: tuple[Path, Path] | None = None
    requests: list[Request] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.lock, self.changed, self.held = Lock(), Condition(), False
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle(self) -> None:
                # Clients that are killed or struck hang up as they like.
                with contextlib.suppress(OSError, http.client.HTTPException):
                    super().handle()

            def answer(self) -> None:
                proxy.serve(self)

            do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = answer

            def log_message(self, *_: object) -> None: ...

        class Server(ThreadingHTTPServer):
            # Clients that find no place in the queue wait for a second.
            request_queue_size = 128

        self.http = Server(("127.0.0.1", 0), Handler)
        self.port = self.http.server_address[1]
        if self.certificate:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*self.certificate)
            self.http.socket = context.wrap_socket(self.http.socket, server_side=True)
        Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def __enter__(self) -> S3Proxy:
        return self

    def __exit__(self, *_: object) -> None:
        self.heal()
        self.http.shutdown()
        self.http.server_close()

    @property
    def url(self) -> str:
        scheme = "https" if self.certificate else "http"
        return f"{scheme}://127.0.0.1:{self.port}{self.prefix}"

    def strike(
        self, name: str, chooses: Chooses = any_request, times: int = 1 << 30, after: int = 0, **details: Any
    ) -> Fault:
        """Do something to the requests that are chosen.

        refuse: answer `status` and `code` (a page of HTML where it is empty) without asking the server.
        answer: answer 200 and `body`, a document, without asking the server.
        reset: reset the connection when `at` bytes of the body have come.
        damage: change a byte of the body before the server gets it.
        damage answer: change a byte of what the server answers.
        lie: answer with other `headers` than the server.
        trickle: send the answer in pieces, and wait `pause` seconds after each.
        cut: end the connection in the middle of the answer.
        lose answer: reset the connection when the server has done what was asked.
        delay: wait `seconds`.
        hold: wait until the network is healed; a client that died meanwhile has asked nothing.
        """
        fault = Fault(name, chooses, times, after, details)
        self.faults.append(fault)
        return fault

    def heal(self) -> None:
        with self.changed:
            self.faults = []
            self.changed.notify_all()

    def forget(self) -> None:
        """Forget what was asked so far."""
        with self.lock:
            self.requests = []

    def seen(self, chooses: Chooses = any_request) -> list[Request]:
        with self.lock:
            return [request for request in self.requests if chooses(request)]

    def sent_parts(self) -> list[int]:
        """Numbers of the parts that the server has taken, in order of their requests."""
        return [r.part for r in self.seen() if r.part is not None and r.status == 200]

    def fault_of(self, request: Request) -> Fault | None:
        with self.lock:
            self.requests.append(request)
            for fault in self.faults:
                if fault.chooses(request):
                    fault.met += 1
                    if fault.after < fault.met <= fault.after + fault.times:
                        request.fault = fault.name
                        return fault
        return None

    def serve(self, handler: BaseHTTPRequestHandler) -> None:
        target = handler.path.removeprefix(self.prefix)
        url = urlsplit(target)
        query = {name: values[0] for name, values in parse_qs(url.query, keep_blank_values=True).items()}
        headers = {name.lower(): value for name, value in handler.headers.items()}
        request = Request(handler.command, unquote(url.path), query, headers)
        fault = self.fault_of(request)
        name, details = (fault.name, fault.details) if fault else ("", {})
        body = self.body_of(handler, request)
        match name:
            case "delay":
                time.sleep(details["seconds"])
            case "hold":
                with self.changed:
                    self.changed.wait_for(lambda: not self.faults)
                # The sockets may hold all that a client had sent before it died.
                body = iter(list(body))
                if has_hung_up(handler):
                    return
            case "reset":
                for _ in body:
                    if request.received >= details.get("at", 0):
                        break
                hang_up(handler)
                return
            case "refuse":
                for _ in body:
                    pass
                refuse(handler, request, **details)
                return
            case "answer":
                for _ in body:
                    pass
                answer_with(handler, request, 200, details["body"])
                return
            case "damage":
                body = damaged(body)
        connection = http.client.HTTPConnection("127.0.0.1", self.to)
        with contextlib.closing(connection):
            connection.putrequest(request.method, target, skip_host=True, skip_accept_encoding=True)
            for header, value in handler.headers.items():
                if header.lower() not in ("expect", "connection"):
                    connection.putheader(header, value)
            if self.prefix:
                connection.putheader("X-Forwarded-Prefix", self.prefix)
            connection.endheaders()
            chunked = "transfer-encoding" in headers
            for piece in body:
                connection.send(b"%x\r\n%b\r\n" % (len(piece), piece) if chunked else piece)
            if chunked:
                connection.send(b"0\r\n\r\n")
            answer = connection.getresponse()
            if name == "lose answer":
                answer.read()
                hang_up(handler)
                return
            pass_answer(handler, request, answer, name, details)

    def body_of(self, handler: BaseHTTPRequestHandler, request: Request) -> Iterator[bytes]:
        """The body as it comes."""
        if request.headers.get("transfer-encoding", "").lower() == "chunked":
            while length := int(handler.rfile.readline().split(b";")[0], 16):
                piece = handler.rfile.read(length)
                handler.rfile.readline()
                request.received += len(piece)
                yield piece
            while handler.rfile.readline().strip():
                pass
            return
        left = int(request.headers.get("content-length", 0))
        while left:
            piece = handler.rfile.read1(min(left, PIECE))
            if not piece:
                raise ConnectionError("the client has hung up")
            left -= len(piece)
            request.received += len(piece)
            yield piece


def damaged(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """Pieces with one bit of the first that is none of its own."""
    for number, piece in enumerate(pieces):
        yield bytes([piece[0] ^ 1]) + piece[1:] if number == 0 and piece else piece


def has_hung_up(handler: BaseHTTPRequestHandler) -> bool:
    poll = select.poll()
    poll.register(handler.connection, select.POLLRDHUP)
    return bool(poll.poll(0))


def hang_up(handler: BaseHTTPRequestHandler) -> None:
    handler.close_connection = True
    reset(handler.connection)


def refuse(
    handler: BaseHTTPRequestHandler, request: Request, status: int, code: str, region: str = ""
) -> None:
    more = f"<Region>{region}</Region>" if region else ""
    error = f"<Error><Code>{code}</Code><Message>said by the proxy</Message>{more}</Error>"
    if not code:
        error = "<html><body>no</body></html>"
    answer_with(handler, request, status, error)


def answer_with(handler: BaseHTTPRequestHandler, request: Request, status: int, document: str) -> None:
    body = f'<?xml version="1.0" encoding="UTF-8"?>\n{document}'.encode()
    request.status = status
    handler.send_response_only(status)
    handler.send_header("Content-Type", "application/xml")
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    if request.method != "HEAD":
        handler.wfile.write(body)


def pass_answer(
    handler: BaseHTTPRequestHandler,
    request: Request,
    answer: http.client.HTTPResponse,
    fault: str,
    details: dict[str, Any],
) -> None:
    lies = details.get("headers", {}) if fault == "lie" else {}
    handler.send_response_only(answer.status)
    for header, value in answer.getheaders():
        if header.lower() not in (*lies, "connection", "transfer-encoding"):
            handler.send_header(header, value)
    for header, value in lies.items():
        handler.send_header(header, value)
    has_no_body = request.method == "HEAD" or answer.status in (204, 304)
    chunked = answer.length is None and not has_no_body
    if chunked:
        handler.send_header("Transfer-Encoding", "chunked")
    # Whoever waits for the answer may look at the list as soon as it is there.
    request.status = answer.status
    handler.end_headers()
    left = (answer.length or 0) // 2 if fault == "cut" else 1 << 62
    pieces = iter(lambda: answer.read1(PIECE), b"")
    for piece in damaged(pieces) if fault == "damage answer" else pieces:
        handler.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece) if chunked else piece[:left])
        left -= len(piece)
        if fault == "trickle":
            time.sleep(details["pause"])
        if left <= 0:
            hang_up(handler)
            return
    if chunked:
        handler.wfile.write(b"0\r\n\r\n")
