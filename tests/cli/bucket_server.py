"""A stand-in for TemplateFlow's bucket on this machine, for tests that fetch from it with TemplateFlow's client."""

import gzip
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Thread


def content_of(name: str) -> bytes:
    """Return what the stand-in gives for a file, of its kind."""
    if name.endswith(".gz"):
        return gzip.compress(name.encode() * 50, mtime=0)
    return b"<GIFTI>" + name.encode() + b"</GIFTI>\n" if name.endswith(".gii") else b"index\tname\n1\tA\n"


class Bucket(BaseHTTPRequestHandler):
    """What the client asks of TemplateFlow's bucket; `faults` are names that are answered otherwise.

    What stalls comes to its half, and to its end when the server is `closed`.
    """

    asked: tuple[str, ...] = ()
    faults: dict[str, str] = {}  # noqa: RUF012  set anew for every server
    closed = Event()

    def log_message(self, *arguments: object) -> None:
        """Say nothing on standard error."""

    def do_GET(self) -> None:
        name = self.path.lstrip("/")
        type(self).asked += (name,)
        fault, data = self.faults.get(name, ""), content_of(name)
        self.send_response(404 if fault == "absent" else 200)
        if fault != "unsized":
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if fault == "stalled":
            self.wfile.write(data[:9])
            self.wfile.flush()
            self.closed.wait(60)
            return
        self.wfile.write(data[:-9] if fault in ("cut", "unsized") else data)


@contextmanager
def bucket() -> Iterator[tuple[str, type[Bucket]]]:
    """Give the address of a server, and its handler."""
    handler = type("OwnBucket", (Bucket,), {"asked": (), "faults": {}, "closed": Event()})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", handler
    finally:
        handler.closed.set()
        server.shutdown()
        server.server_close()
