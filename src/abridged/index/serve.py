"""A page on this machine with a box and the hits as playing clips, or text. No network: it brings along all it shows.

Files are asked for by the number of their content in the index, never by a path: no request reaches another file.
"""

from __future__ import annotations

import json
import mimetypes
import re
import threading
import time
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from abridged.core.errors import AbridgedError
from abridged.index.search import Searcher, Together, Where

_PAGE = {
    "/": ("page.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
}
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; media-src 'self'; form-action 'none'"
)
_MOST = 100  #: hits that are shown
_CHUNK = 1 << 18


def serve(searcher: Searcher | Together, port: int = 0, rerank: int = 0) -> ThreadingHTTPServer:
    """A server on this machine's own address, not yet running: call its `serve_forever`.

    Raises:
        AbridgedError: the port is in use.
    """
    searching = threading.Lock()  # one model, one search at a time

    class Handler(_Handler):
        def find(self, asked: dict[str, list[str]]) -> dict[str, Any]:
            limit = min(_MOST, max(1, int(asked.get("limit", ["12"])[0])))
            text, *then = [text for text in asked.get("text", []) if text.strip()] or [""]
            began = time.monotonic()
            with searching:
                hits = searcher.text(text, then, limit, Where(under=asked.get("under", [None])[0]), rerank)
            return {"seconds": round(time.monotonic() - began, 3), "hits": [hit.as_dict() for hit in hits]}

        def file(self, content: int) -> Path | None:
            return searcher.file(content)

        def about(self) -> dict[str, Any]:
            return {"reads": searcher.reads}

    try:
        return ThreadingHTTPServer(("127.0.0.1", port), Handler)
    except OSError as error:
        raise AbridgedError(f"cannot serve on port {port}: {error.strerror}") from error


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def find(self, asked: dict[str, list[str]]) -> dict[str, Any]:
        raise NotImplementedError

    def file(self, content: int) -> Path | None:
        raise NotImplementedError

    def about(self) -> dict[str, Any]:
        raise NotImplementedError

    def do_GET(self) -> None:
        host = (self.headers.get("Host") or "").rpartition(":")[0] or self.headers.get("Host")
        if host not in ("127.0.0.1", "localhost"):  # a name of somebody else's that leads here
            return self._end(HTTPStatus.FORBIDDEN, b"", "text/plain")
        address = urlsplit(self.path)
        if address.path in _PAGE:
            name, kind = _PAGE[address.path]
            return self._end(HTTPStatus.OK, (files("abridged.index") / name).read_bytes(), kind)
        if address.path == "/search":
            return self._search(parse_qs(address.query))
        if address.path == "/about":
            return self._end(HTTPStatus.OK, json.dumps(self.about()).encode(), "application/json")
        if number := re.fullmatch(r"/video/([0-9]{1,18})", address.path):
            return self._video(self.file(int(number[1])))
        return self._end(HTTPStatus.NOT_FOUND, b"", "text/plain")

    do_HEAD = do_GET

    def _search(self, asked: dict[str, list[str]]) -> None:
        try:
            status, found = HTTPStatus.OK, self.find(asked)
        except (AbridgedError, ValueError) as error:
            status, found = HTTPStatus.BAD_REQUEST, {"error": str(error)}
        self._end(status, json.dumps(found).encode(), "application/json")

    def _video(self, path: Path | None) -> None:
        """A file, or the range of it that is asked for (RFC 9110, section 14)."""
        try:
            file = path.open("rb") if path is not None else None
        except OSError:
            file = None
        if file is None or path is None:
            return self._end(HTTPStatus.NOT_FOUND, b"", "text/plain")
        with file:
            size = file.seek(0, 2)
            wanted = _range(self.headers.get("Range"), size)
            if wanted is None:
                return self._end(
                    HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, b"", "text/plain", {"Content-Range": f"bytes */{size}"}
                )
            start, stop = wanted
            part = "Range" in self.headers
            more = {"Accept-Ranges": "bytes", "Content-Length": str(stop - start)}
            if part:
                more["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
            status = HTTPStatus.PARTIAL_CONTENT if part else HTTPStatus.OK
            self._head(status, mimetypes.guess_type(path.name)[0] or "application/octet-stream", more)
            file.seek(start)
            while start < stop and self.command != "HEAD" and (data := file.read(min(_CHUNK, stop - start))):
                try:
                    self.wfile.write(data)
                except (BrokenPipeError, ConnectionResetError):  # the player has enough
                    self.close_connection = True
                    return
                start += len(data)

    def _head(self, status: HTTPStatus, kind: str, more: dict[str, str]) -> None:
        self.send_response(status)
        same = {"Content-Type": kind, "Content-Security-Policy": _POLICY, "X-Content-Type-Options": "nosniff"}
        for name, value in {**same, "Referrer-Policy": "no-referrer", **more}.items():
            self.send_header(name, value)
        self.end_headers()

    def _end(self, status: HTTPStatus, body: bytes, kind: str, more: dict[str, str] | None = None) -> None:
        self._head(status, kind, {"Content-Length": str(len(body)), **(more or {})})
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Requests are nobody's business."""


def _range(asked: str | None, size: int) -> tuple[int, int] | None:
    """From and to of one range of bytes; of all where none, or several, are asked for; None where it is outside."""
    if asked is None:
        return 0, size
    found = re.fullmatch(r"bytes=([0-9]*)-([0-9]*)", asked.strip())
    if found is None or not (found[1] or found[2]):
        return None
    if not found[1]:  # the last so many
        return (max(0, size - int(found[2])), size) if int(found[2]) and size else None
    start = int(found[1])
    stop = min(size, int(found[2]) + 1) if found[2] else size
    return (start, stop) if start < stop else None
