"""A real server on the loopback, and a proxy that spoils what passes through it."""

from __future__ import annotations

import json
import os
import socket
import struct
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock, Thread
from typing import Any

SECONDS_TO_START = 600


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@contextmanager
def transformers_serve() -> Iterator[str]:
    """``transformers serve`` of any folder, with one thread; yields the address of its API."""
    port = free_port()
    program = "import sys; from transformers.cli.transformers import main; sys.exit(main())"
    options = ["--device", "cpu", "--dtype", "float32", "--port", str(port), "--host", "127.0.0.1"]
    quiet = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    server = subprocess.Popen(
        [sys.executable, "-c", program, "serve", *options],
        env={**os.environ, **quiet},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        _wait(server, f"http://127.0.0.1:{port}/health")
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.kill()
        server.wait()


def _wait(server: subprocess.Popen[bytes], address: str) -> None:
    end = time.monotonic() + SECONDS_TO_START
    while time.monotonic() < end and server.poll() is None:
        try:
            urllib.request.urlopen(address, timeout=5).close()
            return
        except OSError:
            time.sleep(0.2)
    raise RuntimeError("transformers serve did not start")


class Handler(BaseHTTPRequestHandler):
    """Answers POST requests with `reply`; subclasses say what that is."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.reply(json.loads(body), body)

    def reply(self, request: dict[str, Any], body: bytes) -> None:
        raise NotImplementedError

    def send(self, status: int, body: bytes, length: int | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Retry-After", "0")
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        self.wfile.write(body)

    def reset(self) -> None:
        linger = struct.pack("ii", 1, 0)
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.connection.close()

    def log_message(self, format: str, *args: object) -> None:
        del format, args


@contextmanager
def serving(handler: type[Handler]) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    finally:
        server.shutdown()
        server.server_close()


FAULTS = ("reset", "429", "500", "malformed", "half", "no choices")


def spoiling(upstream: str) -> tuple[type[Handler], Counter[str]]:
    """A proxy that spoils the first answer to every prompt, each in another way.

    Returns:
        The handler, and how often each prompt was answered well.
    """
    seen: dict[str, int] = {}
    answered: Counter[str] = Counter()
    lock = Lock()

    class Spoiling(Handler):
        def reply(self, request: dict[str, Any], body: bytes) -> None:
            prompt = request["messages"][-1]["content"]
            with lock:
                fault = None if prompt in seen else FAULTS[len(seen) % len(FAULTS)]
                seen.setdefault(prompt, len(seen))
            if fault is None:
                status, reply = _forwarded(upstream, body)
                with lock:
                    answered[prompt] += status == 200
                self.send(status, reply)
            else:
                self._spoil(fault)

        def _spoil(self, fault: str) -> None:
            if fault == "reset":
                self.reset()
            elif fault in ("429", "500"):
                self.send(int(fault), b'{"error": {"message": "try again"}}')
            elif fault == "malformed":
                self.send(200, b'{"choices": [{"mess')
            elif fault == "half":
                self.send(200, b'{"choices": [', length=500)
            else:
                self.send(200, b'{"choices": []}')

    return Spoiling, answered


def _forwarded(upstream: str, body: bytes) -> tuple[int, bytes]:
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{upstream}/chat/completions", body, headers)
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            return 200, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()
