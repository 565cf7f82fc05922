"""The calls of ComfyUI's HTTP API that its front end makes. Standard library only."""

from __future__ import annotations

import json
import urllib.error
import urllib.parse
import urllib.request
import uuid
from pathlib import Path
from typing import Any

Prompt = dict[str, dict[str, Any]]


def node(kind: str, **inputs: Any) -> dict[str, Any]:
    """A prompt's node; an input that is wired is the other node's id and its output's number."""
    return {"class_type": kind, "inputs": inputs}


class PromptRejected(Exception):
    """The server did not accept a prompt; ``errors`` is its answer."""

    def __init__(self, errors: dict[str, Any]) -> None:
        super().__init__(json.dumps(errors, indent=1))
        self.errors = errors


class Api:
    """The server at ``url``, such as `http://127.0.0.1:8188`."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self.id = uuid.uuid4().hex

    def get(self, path: str, **query: str) -> Any:
        """Return the JSON that a GET of ``path`` answers."""
        return json.loads(self._request(path, query=query))

    def post(self, path: str, body: dict[str, Any] | None = None) -> bytes:
        """Return what a POST of ``body`` as JSON answers."""
        return self._request(path, json.dumps(body or {}).encode(), "application/json")

    def queue(self, prompt: Prompt, workflow: dict[str, Any] | None = None) -> str:
        """Queue a prompt in the API's format and return its id.

        Raises:
            PromptRejected: it names unknown nodes, lacks inputs, or has values out of range.
        """
        extra = {"extra_pnginfo": {"workflow": workflow}} if workflow else {}
        body = {"prompt": prompt, "client_id": self.id, "extra_data": extra}
        try:
            return str(json.loads(self.post("/prompt", body))["prompt_id"])
        except urllib.error.HTTPError as error:
            raise PromptRejected(json.loads(error.read())) from None

    def history(self, prompt_id: str) -> dict[str, Any]:
        """Return the server's record of a prompt that has ended."""
        return dict(self.get(f"/history/{prompt_id}")[prompt_id])

    def interrupt(self) -> None:
        """Cancel the prompt that runs now."""
        self.post("/interrupt")

    def upload(self, picture: Path) -> str:
        """Put a picture into the server's input folder; return the name that LoadImage knows."""
        return self.put(picture.read_bytes(), picture.name)

    def put(self, picture: bytes, name: str, **fields: str) -> str:
        """The same with an encoded picture; ``fields`` (type, subfolder) name another folder."""
        edge = f"--{uuid.uuid4().hex}"
        head = "".join(
            f'{edge}\r\nContent-Disposition: form-data; name="{field}"\r\n\r\n{value}\r\n'
            for field, value in fields.items()
        ) + (f'{edge}\r\nContent-Disposition: form-data; name="image"; filename="{name}"\r\n\r\n')
        body = head.encode() + picture + f"\r\n{edge}--\r\n".encode()
        kind = f"multipart/form-data; boundary={edge[2:]}"
        told = json.loads(self._request("/upload/image", body, kind))
        known = "/".join(filter(None, (told["subfolder"], told["name"])))
        return known if told["type"] == "input" else f"{known} [{told['type']}]"

    def picture(self, output: dict[str, str]) -> bytes:
        """Return the encoded image that an entry of a node's ``images`` output names."""
        return self._request("/view", query=output)

    def _request(
        self,
        path: str,
        body: bytes | None = None,
        kind: str | None = None,
        query: dict[str, str] | None = None,
    ) -> bytes:
        address = self.url + path + ("?" + urllib.parse.urlencode(query) if query else "")
        headers = {"Content-Type": kind} if kind else {}
        request = urllib.request.Request(address, body, headers)  # noqa: S310 - our own server
        with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310
            return bytes(answer.read())
