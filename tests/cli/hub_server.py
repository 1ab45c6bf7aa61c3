"""A stand-in for the hub on this machine, for tests that fetch from it with the hub's own client."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(BaseHTTPRequestHandler):
    """What the client of the hub asks for: a repository's list of files, and the files of one commit."""

    protocol_version = "HTTP/1.1"
    folder = Path()
    asked: tuple[str, ...] = ()

    def log_message(self, *arguments: object) -> None:
        """Say nothing on standard error."""

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, *, with_body: bool) -> None:
        path = self.path.partition("?")[0]
        type(self).asked += (path,)
        files = sorted(file.name for file in self.folder.iterdir())
        headers = {"Content-Type": "application/json"}
        if path.startswith("/api/models/owner/name/tree/"):
            entries = [{"type": "file", "path": n, "size": (self.folder / n).stat().st_size, "oid": n} for n in files]
            data = json.dumps(entries).encode()
        elif path in ("/api/models/owner/name", *(f"/api/models/owner/name/revision/{r}" for r in ("main", COMMIT))):
            siblings = [{"rfilename": name} for name in files]
            data = json.dumps({"id": "owner/name", "sha": COMMIT, "siblings": siblings}).encode()
        elif path.startswith(f"/owner/name/resolve/{COMMIT}/"):
            data = (self.folder / path.rpartition("/")[2]).read_bytes()
            headers = {"ETag": f'"{hashlib.sha256(data).hexdigest()}"', "X-Repo-Commit": COMMIT}
        else:
            data = b""
            code = "RevisionNotFound" if "/revision/" in path else "GatedRepo" if "gated" in path else "RepoNotFound"
            headers = {"X-Error-Code": code}
        self.send_response(403 if "gated" in path else 200 if data else 404)
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        if with_body:
            self.wfile.write(data)


@contextmanager
def hub(folder: Path) -> Iterator[tuple[str, type[Hub]]]:
    """Serve a folder as the repository owner/name; gives the address and the handler."""
    handler = type("OwnHub", (Hub,), {"folder": folder, "asked": ()})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", handler
    finally:
        server.shutdown()
        server.server_close()
