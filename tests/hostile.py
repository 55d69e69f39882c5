"""An HTTP server on this machine that goes wrong on purpose, and zips for it."""

import io
import socket
import threading
import time
import zipfile
from collections import deque
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


def make_zip(files: dict[str, bytes]) -> bytes:
    """A zip of these files."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as zipped:
        for name, content in files.items():
            zipped.writestr(name, content)
    return buffer.getvalue()


class Hostile(ThreadingHTTPServer):
    """Serves `files` by path (without the slash) with Range, If-Range and ETag, except that each of `script` spoils one
    request: a dict of what Handler.do_GET knows. `log` has (path, Range) of every request."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.script: deque[dict] = deque()
        self.log: list[tuple[str, str | None]] = []
        self.released = threading.Event()  # ends what hangs
        self.url = f"http://127.0.0.1:{self.server_port}"

    def __enter__(self):
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.released.set()
        self.shutdown()
        self.server_close()

    def handle_error(self, request, client_address):
        """Those who were fetching have gone: no news."""


class Handler(BaseHTTPRequestHandler):
    """One request; the keys of a script's entry are the arguments of `answer`."""

    def log_message(self, *_):
        """Silence."""

    def do_GET(self):
        name = self.path.lstrip("/")
        self.server.log.append((name, self.headers["Range"]))
        self.answer(name, **(self.server.script.popleft() if self.server.script else {}))

    def answer(
        self,
        name,
        status=None,
        headers=(),
        change=None,  # the file becomes this
        ranges=True,  # False: Range is not known
        if_range=True,  # False: Range is obeyed though the file has changed
        shift=0,  # a range begins so many bytes early, and says so
        cut=None,  # bytes sent before the connection breaks
        longer=0,  # how many bytes too many Content-Length names
        html=False,
        hang=False,  # before the body's second half
        pause=0.0,  # seconds between pieces of 4 kB
        validator=True,
        weak=False,  # the ETag
        chunked=False,
    ):
        if change is not None:
            self.server.files[name] = change
        data = self.server.files.get(name)
        if data is None and status is None and not html:
            status = 404
        if status:
            self.send_response(status)
            for key, value in headers:
                self.send_header(key, value)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if html:
            data, ranges = b"<html>please log in</html>", False
        etag = f'{"W/" if weak else ""}"{hash(data)}"'
        asked = self.headers["Range"]
        start = 0
        fits = self.headers["If-Range"] == etag or not if_range
        if asked and ranges and fits:
            start = int(asked.removeprefix("bytes=").rstrip("-")) - shift
            if start >= len(data):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(data)}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        else:
            self.send_response(200)
        self.send_header("Content-Type", "text/html; charset=utf-8" if html else "application/zip")
        if validator:
            self.send_header("ETag", etag)
        body = data[start:]
        if chunked:
            self.protocol_version = "HTTP/1.1"
            self.send_header("Transfer-Encoding", "chunked")
        else:
            self.send_header("Content-Length", str(len(body) + longer))
        self.end_headers()
        body = body[: len(body) + longer if longer < 0 else None]
        if chunked:
            body = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
        if hang:
            self.wfile.write(body[: len(body) // 2])
            self.server.released.wait(20)
        elif pause:
            for at in range(0, len(body), 4096):
                self.wfile.write(body[at : at + 4096])
                time.sleep(pause)
        else:
            self.wfile.write(body[:cut])
        self.close_connection = True
        if cut is not None:
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)
