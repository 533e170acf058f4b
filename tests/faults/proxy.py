"""A TCP proxy with the faults that networks, load balancers and servers have."""

from __future__ import annotations

import contextlib
import random
import socket
import time
from threading import Condition, Thread

from support.helpers import reset

# Each name with its effect on the next bytes that pass, in either direction unless it says otherwise.
FAULTS = [
    "delay",  # they arrive late
    "stall",  # they arrive once the network is healed
    "drop",  # they and all later bytes of the connection vanish, and nobody is told
    "reset",  # the connection is reset, and so are all others
    "refuse",  # new connections are reset, and so are all others
    "half-close",  # one direction ends, the other goes on
    "garbage",  # the client is answered something else
    "cut",  # some of them arrive, then the connection ends
    "lose answer",  # requests arrive, their answers do not
]
GARBAGE = [
    b"HTTP/1.1 502 Bad Gateway\r\nContent-Type: text/html\r\nContent-Length: 12\r\n\r\n<html>sorry>",
    b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n<!doctype",
    b"E\0\0\0\x0fSFATAL\0\0garbage",
    b"\0" * 64,
]


class Proxy:
    """Passes what comes in on `port` to a server, until it is struck with a fault."""

    def __init__(self, port: int, rng: random.Random | None = None) -> None:
        self.to, self.rng = port, rng or random.Random(0)
        self.fault = ""
        # The number of bytes that pass unharmed before it.
        self.unharmed = 0
        # The number of times that a fault has met something.
        self.struck = 0
        self.changed = Condition()
        self.pairs: list[Pair] = []
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> Proxy:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self.heal()
        self._reset_all()

    def strike(self, fault: str, after: int = 0) -> None:
        """Begin with a fault, after so many pieces of requests and answers."""
        with self.changed:
            self.fault, self.unharmed = fault, after
            self.changed.notify_all()
        if fault in ("reset", "refuse"):
            self.struck += self._reset_all()

    def heal(self, *, forget: bool = False) -> None:
        """Pass everything again. Silent connections stay so; with `forget` they are reset."""
        self.strike("")
        if forget:
            for pair in self.pairs:
                if pair.silent:
                    pair.reset()

    def _reset_all(self) -> int:
        pairs, self.pairs = self.pairs, []
        for pair in pairs:
            pair.reset()
        return sum(not pair.over for pair in pairs)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            if self.fault == "refuse":
                self.struck += 1
                reset(client)
                continue
            try:
                server = socket.create_connection(("127.0.0.1", self.to))
            except OSError:
                reset(client)
                continue
            pair = Pair(self, client, server)
            self.pairs.append(pair)
            for ends in ((client, server), (server, client)):
                Thread(target=pair.pass_on, args=ends, daemon=True).start()


class Pair:
    """A client's connection and the one to the server."""

    def __init__(self, proxy: Proxy, client: socket.socket, server: socket.socket) -> None:
        self.proxy, self.client, self.server = proxy, client, server
        self.silent = self.over = False

    def reset(self) -> None:
        reset(self.client)
        reset(self.server)
        self.over = True

    def close(self) -> None:
        for connection in (self.client, self.server):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()
        self.over = True

    def pass_on(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while chunk := source.recv(65536):
                if self.silent:
                    continue
                if not self.pass_chunk(chunk, sink):
                    return
            sink.shutdown(socket.SHUT_WR)

    def pass_chunk(self, chunk: bytes, sink: socket.socket) -> bool:
        """Pass bytes on, in the weather there is; false if no more will follow."""
        proxy, rng = self.proxy, self.proxy.rng
        fault = proxy.fault
        if fault == "lose answer" and sink is self.server:
            fault = ""
        if fault and proxy.unharmed:
            proxy.unharmed -= 1
            fault = ""
        proxy.struck += fault != ""
        match fault:
            case "delay":
                time.sleep(rng.uniform(0.01, 0.1))
            case "stall":
                with proxy.changed:
                    proxy.changed.wait_for(lambda: proxy.fault != "stall")
            case "drop":
                self.silent = True
                return True
            case "reset" | "refuse" | "lose answer":
                self.reset()
                return False
            case "half-close":
                sink.sendall(chunk[: rng.randrange(len(chunk) + 1)])
                sink.shutdown(socket.SHUT_WR)
                return False
            case "garbage":
                self.client.sendall(rng.choice([*GARBAGE, rng.randbytes(100)]))
                self.close()
                return False
            case "cut":
                sink.sendall(chunk[: rng.randrange(len(chunk))])
                self.close() if rng.random() < 0.5 else self.reset()
                return False
        sink.sendall(chunk)
        return True
