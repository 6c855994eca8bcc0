"""Google Cloud Storage in a thread: as much of its JSON API as we use.

TensorStore, gcsfs and google-cloud-storage all speak to it; objects have
generations, and the preconditions on them hold. Emulators on PyPI know no
preconditions (gcp-storage-emulator 2026.7) or are a program to be downloaded.
"""

import base64
import contextlib
import hashlib
import http.server
import json
import os
import re
import signal
import threading
import urllib.parse
from collections.abc import Callable
from typing import Any

_PAGE = 100  # Small, so that lists of several pages are tested too.


class FakeBuckets:
  """A server of one bucket, "bucket", and one "closed"; a context manager.

  Attributes:
    objects: the bucket's content by name: (generation, bytes).
    url: where it listens.
    after_write: called with an object's name once it is stored.
    refused: a pattern of names that can't be written.
    describes_itself: whether one may ask for the bucket beside its objects.
    requests: (method, path, status) of all that was asked.
  """

  def __init__(self):
    self.objects: dict[str, tuple[int, bytes]] = {}
    self.after_write: Callable[[str], None] = lambda name: None
    self.refused: str | None = None
    self.describes_itself = True
    self.requests: list[tuple[str, str, int]] = []
    self._lock = threading.RLock()
    self._generation = 1000
    buckets = self

    class Handler(_Handler):
      def __init__(self, *arguments):
        self.buckets = buckets
        super().__init__(*arguments)

    self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    self._server.daemon_threads = True
    self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

  @property
  def environment(self) -> dict[str, str]:
    """Variables that lead all clients here, without credentials."""
    return {
      "TENSORSTORE_GCS_HTTP_URL": self.url,
      "STORAGE_EMULATOR_HOST": self.url,
      "GOOGLE_CLOUD_PROJECT": "project",
      # Else gcsfs asks a service of its own for the kind of the bucket.
      "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
    }

  def names(self, prefix: str) -> list[str]:
    """Returns the names below `prefix`, without it, sorted."""
    with self._lock:
      found = sorted(n for n in self.objects if n.startswith(prefix))
    return [name.removeprefix(prefix) for name in found]

  def content(self, name: str) -> bytes:
    with self._lock:
      return self.objects[name][1]

  def signal_after_writing(
    self, pattern: str, pid: int, number: signal.Signals
  ) -> None:
    """Sends a signal once, when an object of such a name is stored."""

    def send(name: str) -> None:
      if re.search(pattern, name):
        self.after_write = lambda name: None
        os.kill(pid, number)

    self.after_write = send

  def put(self, name: str, content: bytes, if_generation: str | None) -> int:
    """Stores an object; returns its generation, 0 where it must not."""
    with self._lock:
      now = self.objects.get(name, (0, b""))[0]
      if if_generation is not None and int(if_generation) != now:
        return 0
      self._generation += 1
      self.objects[name] = (self._generation, content)
      return self._generation

  def __enter__(self):
    threading.Thread(
      target=self._server.serve_forever, args=(0.05,), daemon=True
    ).start()
    return self

  def __exit__(self, *_):
    self._server.shutdown()
    self._server.server_close()


class _Handler(http.server.BaseHTTPRequestHandler):
  protocol_version = "HTTP/1.1"
  # One packet an answer: with two, Nagle's algorithm waits 40 ms for each.
  wbufsize = -1
  disable_nagle_algorithm = True
  buckets: FakeBuckets

  def handle(self):
    # A client that is killed resets its connections.
    with contextlib.suppress(ConnectionError):
      super().handle()

  def do_GET(self):
    self._route("GET")

  def do_POST(self):
    self._route("POST")

  def do_PUT(self):
    self._route("PUT")

  def do_DELETE(self):
    self._route("DELETE")

  def log_message(self, *_):
    pass

  def _route(self, method: str):
    url = urllib.parse.urlsplit(self.path)
    query = dict(urllib.parse.parse_qsl(url.query, keep_blank_values=True))
    body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
    parts = [urllib.parse.unquote(p) for p in url.path.split("/") if p]
    while parts and parts[0] in ("upload", "download"):
      parts.pop(0)
    if parts[:3] != ["storage", "v1", "b"] or len(parts) < 4:
      self._answer(404, {"error": {"message": "no such page"}})
    elif parts[3] == "closed":
      self._answer(
        401,
        {"error": {"message": "Anonymous caller does not have access."}},
      )
    elif parts[3] != "bucket":
      self._answer(
        404,
        {"error": {"message": "The specified bucket does not exist."}},
      )
    elif len(parts) == 4 and not self.buckets.describes_itself:
      self._answer(403, {"error": {"message": "no storage.buckets.get access"}})
    elif len(parts) == 4:
      self._answer(200, {"kind": "storage#bucket", "name": "bucket"})
    elif len(parts) == 5 and method == "GET":
      self._list(query)
    elif len(parts) == 5:
      self._upload(query, body)
    elif "rewriteTo" in parts:
      self._rewrite(parts[5], parts[-1])
    elif "moveTo" in parts:
      self._move(parts[5], parts[-1])
    elif method == "GET":
      self._get(parts[5], query)
    elif method == "DELETE":
      self._delete(parts[5], query)
    else:
      self._answer(404, {"error": {"message": "no such method"}})

  def _list(self, query: dict[str, str]):
    prefix, delimiter = query.get("prefix", ""), query.get("delimiter")
    with self.buckets._lock:
      names = sorted(self.buckets.objects)
    first = max(query.get("startOffset", ""), query.get("pageToken", ""))
    items, prefixes, token = [], [], None
    for name in names:
      if not name.startswith(prefix) or name < first:
        continue
      if "endOffset" in query and name >= query["endOffset"]:
        continue
      tail = name[len(prefix) :]
      if delimiter and delimiter in tail:
        folder = prefix + tail.partition(delimiter)[0] + delimiter
        if folder not in prefixes:
          prefixes.append(folder)
        continue
      if len(items) == _PAGE:
        token = name
        break
      items.append(self._describe(name))
    answer: dict[str, Any] = {"kind": "storage#objects", "items": items}
    if prefixes:
      answer["prefixes"] = prefixes
    if token is not None:
      answer["nextPageToken"] = token
    self._answer(200, answer)

  def _get(self, name: str, query: dict[str, str]):
    generation, content = self.buckets.objects.get(name, (0, b""))
    if not generation:
      self._answer(404, {"error": {"message": f"No such object: {name}"}})
    elif query.get("ifGenerationNotMatch") == str(generation):
      self._answer(304, None)
    elif query.get("ifGenerationMatch", str(generation)) != str(generation):
      self._answer(412, {"error": {"message": "generation differs"}})
    elif query.get("alt") != "media":
      self._answer(200, self._describe(name))
    else:
      self._media(generation, content)

  def _media(self, generation: int, content: bytes):
    extra = {
      "x-goog-generation": str(generation),
      "x-goog-stored-content-length": str(len(content)),
      "Content-Type": "application/octet-stream",
    }
    wanted = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range") or "")
    if wanted is None or not content:
      self._answer(200, content, extra)
      return
    first, last = wanted.groups()
    begin = int(first) if first else len(content) - int(last)
    end = min(int(last) + 1 if first and last else len(content), len(content))
    extra["Content-Range"] = f"bytes {begin}-{end - 1}/{len(content)}"
    if begin >= len(content):
      self._answer(416, b"", extra)
    else:
      self._answer(206, content[begin:end], extra)

  def _upload(self, query: dict[str, str], body: bytes):
    kind, name = query.get("uploadType"), query.get("name", "")
    if kind == "multipart":
      boundary = re.search(
        "boundary=['\"]?([^'\";]+)", self.headers["Content-Type"]
      )[1]
      _, about, media = body.split(b"--" + boundary.encode())[:3]
      name = json.loads(
        about.partition(b"}")[0].partition(b"{")[2].join([b"{", b"}"])
      )["name"]
      body = re.split(b"\r?\n\r?\n", media, maxsplit=1)[1]
      body = body.removesuffix(b"\n").removesuffix(b"\r")
    elif kind == "resumable" and "upload_id" not in query:
      location = f"{self.buckets.url}{self.path}&upload_id=u"
      self._answer(200, {}, {"Location": location})
      return
    if self.buckets.refused and re.search(self.buckets.refused, name):
      self._answer(403, {"error": {"message": "The quota is used up."}})
      return
    generation = self.buckets.put(name, body, query.get("ifGenerationMatch"))
    if not generation:
      self._answer(412, {"error": {"message": "generation differs"}})
      return
    self.buckets.after_write(name)
    self._answer(200, self._describe(name))

  def _rewrite(self, source: str, target: str):
    if source not in self.buckets.objects:
      self._answer(404, {"error": {"message": "No such object"}})
      return
    self.buckets.put(target, self.buckets.objects[source][1], None)
    self._answer(200, {"done": True, "resource": self._describe(target)})

  def _move(self, source: str, target: str):
    with self.buckets._lock:
      if source not in self.buckets.objects:
        self._answer(404, {"error": {"message": "No such object"}})
        return
      self.buckets.put(target, self.buckets.objects[source][1], None)
      del self.buckets.objects[source]
    self._answer(200, self._describe(target))

  def _delete(self, name: str, query: dict[str, str]):
    with self.buckets._lock:
      generation = self.buckets.objects.get(name, (0, b""))[0]
      if not generation:
        status = 404
      elif query.get("ifGenerationMatch", str(generation)) != str(generation):
        status = 412
      else:
        status = 204
        del self.buckets.objects[name]
    self._answer(status, None if status == 204 else {"error": {}})

  def _describe(self, name: str) -> dict[str, Any]:
    generation, content = self.buckets.objects.get(name, (0, b""))
    digest = base64.b64encode(hashlib.md5(content).digest()).decode()
    return {
      "kind": "storage#object",
      "bucket": "bucket",
      "name": name,
      "generation": str(generation),
      "metageneration": "1",
      "size": str(len(content)),
      "md5Hash": digest,
      "updated": "2026-01-01T00:00:00.000Z",
      "timeCreated": "2026-01-01T00:00:00.000Z",
    }

  def _answer(
    self,
    status: int,
    content: bytes | dict[str, Any] | None,
    headers: dict[str, str] | None = None,
  ):
    self.buckets.requests.append((self.command, self.path, status))
    body = content if isinstance(content, bytes) else b""
    headers = dict(headers or {})
    if isinstance(content, dict):
      body = json.dumps(content).encode()
      headers["Content-Type"] = "application/json; charset=UTF-8"
    self.send_response(status)
    for key, value in headers.items():
      self.send_header(key, value)
    self.send_header("Content-Length", str(len(body)))
    self.end_headers()
    self.wfile.write(body)
