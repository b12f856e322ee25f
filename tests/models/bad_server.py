"""A web server on loopback that serves one folder badly: it cuts, stalls, alters, refuses."""

from __future__ import annotations

import hashlib
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


@dataclass
class BadServer:
    """`faults` are taken one for each request, then all goes well."""

    folder: Path
    faults: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    address: str = ""


@contextmanager
def serving(folder: Path, *faults: str) -> Iterator[BadServer]:
    server = BadServer(folder, list(faults))

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            fault = server.faults.pop(0) if server.faults else ""
            asked = self.headers.get("Range", "")
            server.requests.append(asked or "whole")
            path = folder / self.path.lstrip("/")
            if fault.isdigit() or not path.is_file():
                self.refuse(int(fault or 404))
            else:
                self.serve(path.read_bytes(), asked, fault)

        def refuse(self, code):
            self.send_response(code)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def serve(self, data, asked, fault):
            tag = f'"{hashlib.sha256(data).hexdigest()[:8]}"'
            start = 0
            if (match := re.fullmatch(r"bytes=(\d+)-", asked)) and self.headers.get("If-Range") == tag:
                start = int(match[1])
            body = data[start:]
            self.send_response(206 if start else 200)
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
            if fault != "no length":
                self.send_header("Content-Length", str(len(body)))
            else:
                self.send_header("Connection", "close")
                self.close_connection = True
            if fault != "no tag":
                self.send_header("ETag", tag)
            self.end_headers()
            self.send_body(body, fault)

        def send_body(self, body, fault):
            if fault == "alter":
                body = body[:-1] + bytes([body[-1] ^ 1])
            if fault in ("cut", "stall"):
                body = body[: len(body) // 2]
            try:
                if fault == "slow":
                    for k in range(0, len(body), max(1, len(body) // 200)):
                        self.wfile.write(body[k : k + max(1, len(body) // 200)])
                        self.wfile.flush()
                        time.sleep(0.05)
                else:
                    self.wfile.write(body)
                    self.wfile.flush()
                if fault == "stall":
                    time.sleep(4)
            except (BrokenPipeError, ConnectionResetError):
                pass
            if fault in ("cut", "stall"):
                self.close_connection = True

        def log_message(self, *arguments):
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    server.address = f"http://127.0.0.1:{http.server_port}"
    threading.Thread(target=http.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()
