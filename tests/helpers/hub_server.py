"""A Hugging Face hub on this machine: the few routes with which huggingface_hub downloads and uploads models."""

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import unquote, urlsplit

import pytest


@dataclass
class Hub:
    """The repositories of the server, and what it was asked.

    Attributes:
        url: address of the server.
        files: OWNER/NAME -> path in the repository -> content; one revision, main.
        refused: OWNER/NAME -> code of the hub's error ("GatedRepo").
        requests: method and path of every request.
    """

    url: str = ""
    files: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)

    def commit(self, repo: str) -> str:
        """The commit of a repository, from its content."""
        return hashlib.sha1(repr(sorted(self.files[repo].items())).encode()).hexdigest()


@contextmanager
def serve(hub: Hub) -> Iterator[Hub]:
    """Run the server in a thread of this process."""
    handler = type("Handler", (_Handler,), dict(hub=hub))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = Thread(target=server.serve_forever, kwargs=dict(poll_interval=0.05), daemon=True)
    thread.start()
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)


def use(monkeypatch: pytest.MonkeyPatch, cache, url: str = "http://127.0.0.1:9", offline: bool = False) -> None:
    """Let huggingface_hub in this process use a server and a cache; it has read the environment when imported."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", f"{cache}/token")  # not the user's
    monkeypatch.setattr(constants, "AGENT_HARNESSES_PATH", f"{cache}/agents.json")
    monkeypatch.delenv("HF_TOKEN", raising=False)


def environment(cache, url: str = "http://127.0.0.1:9", offline: bool = False) -> dict[str, str]:
    """The variables with which a process of its own uses a server and a cache."""
    return dict(HF_ENDPOINT=url, HF_HUB_CACHE=str(cache), HF_HUB_OFFLINE=str(int(offline)), HF_HOME=str(cache))


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:  # noqa: N802 the library's name
        self._answer()

    do_GET = do_POST = do_HEAD  # noqa: N815

    def log_message(self, *_) -> None:
        pass

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(f"{self.command} {path}")
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if path == "/api/repos/create":
            wanted = json.loads(body)
            repo = f"{wanted['organization']}/{wanted['name']}"
            self.hub.files.setdefault(repo, {})
            return self._json(dict(url=f"{self.hub.url}/{repo}", name=repo))
        if path == "/api/validate-yaml":
            return self._json(dict(errors=[], warnings=[]))
        found = re.fullmatch(
            r"(/api/models)?/([^/]+/[^/]+?)(?:/(revision|tree|resolve|preupload|commit)/([^/]+)/?(.*))?", path
        )
        if not found:
            return self._error(404, "EntryNotFound")
        repo, action, revision, rest = found.groups()[1:]
        if repo in self.hub.refused:
            return self._error(403, self.hub.refused[repo])
        if repo not in self.hub.files:
            return self._error(404, "RepoNotFound")
        if revision not in (None, "main", self.hub.commit(repo)):
            return self._error(404, "RevisionNotFound")
        return getattr(self, f"_{action or 'revision'}")(repo, rest, body)

    def _revision(self, repo: str, rest: str, body: bytes) -> None:
        siblings = [dict(rfilename=name) for name in self.hub.files[repo]]
        self._json(dict(id=repo, modelId=repo, sha=self.hub.commit(repo), siblings=siblings, private=False))

    def _tree(self, repo: str, rest: str, body: bytes) -> None:
        self._json(
            [
                dict(type="file", path=name, size=len(content), oid=hashlib.sha1(content).hexdigest())
                for name, content in self.hub.files[repo].items()
            ]
        )

    def _resolve(self, repo: str, name: str, body: bytes) -> None:
        content = self.hub.files[repo].get(name)
        if content is None:
            return self._error(404, "EntryNotFound", repo)
        return self._send(200, content, ETag=f'"{hashlib.sha1(content).hexdigest()}"', **self._commit_header(repo))

    def _preupload(self, repo: str, rest: str, body: bytes) -> None:
        files = [dict(path=f["path"], uploadMode="regular", shouldIgnore=False) for f in json.loads(body)["files"]]
        self._json(dict(files=files))

    def _commit(self, repo: str, rest: str, body: bytes) -> None:
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "file":
                self.hub.files[repo][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        commit = self.hub.commit(repo)
        self._json(dict(success=True, commitUrl=f"{self.hub.url}/{repo}/commit/{commit}", commitOid=commit))

    # ------------------------------------------------------------------------------------------------- answers

    def _commit_header(self, repo: str) -> dict[str, str]:
        return {"X-Repo-Commit": self.hub.commit(repo)}

    def _json(self, content: object) -> None:
        self._send(200, json.dumps(content).encode(), **{"Content-Type": "application/json"})

    def _error(self, status: int, code: str, repo: str | None = None) -> None:
        headers = self._commit_header(repo) if repo else {}
        self._send(status, b"{}", **{"X-Error-Code": code, "Content-Type": "application/json"}, **headers)

    def _send(self, status: int, content: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)
