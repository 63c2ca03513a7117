"""The HTTP client of the peers that are servers: a file as a form, a connection a request, as `curl -F`."""

from __future__ import annotations

import http.client
import json
import time
import uuid
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from benchmarks.contender import Answer, ContenderError

if TYPE_CHECKING:
    from pathlib import Path

HOST = "127.0.0.1"
ANSWER_S = 3_600.0
"""An hour of audio takes several minutes."""


@dataclass(frozen=True)
class Upload:
    """What a server wants beside the file, and where."""

    port: int
    path: str
    fields: dict[str, str] = field(default_factory=dict)

    def one(self, clip: Path) -> Answer:
        """Upload one clip and wait for its text."""
        begun = time.perf_counter()
        text = self.post(clip)["text"]
        return Answer(time.perf_counter() - begun, text)

    def close(self) -> None:
        """Nothing stays open between two requests."""

    def post(self, clip: Path) -> dict[str, Any]:
        """Upload one clip; gives the server's whole answer."""
        boundary = uuid.uuid4().hex
        start = f"--{boundary}\r\nContent-Disposition: form-data; name="
        fields = "".join(f'{start}"{name}"\r\n\r\n{value}\r\n' for name, value in self.fields.items())
        file = f'{start}"file"; filename="{clip.name}"\r\nContent-Type: application/octet-stream\r\n\r\n'
        body = b"".join((f"{fields}{file}".encode(), clip.read_bytes(), f"\r\n--{boundary}--\r\n".encode()))
        headers = {"Content-Type": f"multipart/form-data; boundary={boundary}"}
        answer: dict[str, Any] = json.loads(self._ask("POST", self.path, body, headers))
        return answer

    def healthy(self) -> bool:
        """Whether the server answers."""
        try:
            self._ask("GET", "/health", b"", {})
        except ContenderError:
            return False
        return True

    def _ask(self, method: str, path: str, body: bytes, headers: dict[str, str]) -> bytes:
        connection = http.client.HTTPConnection(HOST, self.port, timeout=ANSWER_S)
        try:
            connection.request(method, path, body, headers)
            response = connection.getresponse()
            data = response.read()
        except (OSError, http.client.HTTPException) as error:
            raise ContenderError(f"{method} {path}: {error!r}") from error
        finally:
            connection.close()
        if response.status != http.client.OK:
            raise ContenderError(f"{method} {path}: {response.status} {data[:200]!r}")
        return data
