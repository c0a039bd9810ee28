"""A Hub on the loopback address: the routes of huggingface.co that `huggingface_hub` calls for models, in memory.

Made for the tests alone. It keeps repositories and their commits, knows one token, and breaks off where a test
tells it to.
"""

import base64
import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

TOKEN = "hf_loopback"
USER = "me"


@dataclass
class Commit:
    oid: str
    summary: str
    files: dict[str, bytes]  # the whole tree, by path
    changed: list[str]  # what was sent with it


@dataclass
class Repository:
    private: bool
    commits: list[Commit] = field(default_factory=list)

    def commit(self, revision: str) -> Commit | None:
        if revision == "main":
            return self.commits[-1]
        return next((commit for commit in self.commits if commit.oid == revision), None)


class LoopbackHub:
    """Starts with the constructor; `close` ends it.

    Attributes:
        repositories: By name.
        requests: Method and path of every request, in order.
        break_off: Requests whose "METHOD path" matches this regular expression lose their connection half way.
    """

    def __init__(self):
        self.repositories: dict[str, Repository] = {}
        self.requests: list[str] = []
        self.break_off: str | None = None
        self.large_files: dict[tuple[str, str], bytes] = {}  # by repository and SHA-256
        self.lock = threading.Lock()
        methods = dict.fromkeys(("do_GET", "do_HEAD", "do_POST", "do_PUT"), _Handler.handle_request)
        handler = type("Handler", (_Handler,), {"hub": self, **methods})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}"

    def close(self):
        self.server.shutdown()
        self.server.server_close()

    def add_commit(self, repository: Repository, summary: str, changes: dict[str, bytes]) -> Commit:
        files = {**(repository.commits[-1].files if repository.commits else {}), **changes}
        oid = hashlib.sha1(f"{len(repository.commits)}{summary}{sorted(files)}".encode()).hexdigest()
        repository.commits.append(Commit(oid, summary, files, sorted(changes)))
        return repository.commits[-1]


def _is_large(path: str, size: int) -> bool:
    return path.endswith((".safetensors", ".png")) or size > 10_000_000


class _Handler(BaseHTTPRequestHandler):
    hub: LoopbackHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: Any):
        pass

    def handle_request(self):
        self.route = unquote(urlsplit(self.path).path)
        request = f"{self.command} {self.route}"
        with self.hub.lock:
            self.hub.requests.append(request)
        if self.hub.break_off and re.search(self.hub.break_off, request):
            self.rfile.read(min(1000, int(self.headers.get("Content-Length") or 0)))
            self.connection.close()
            self.close_connection = True
            return
        self.body = self._read_body()
        for method, pattern, answer in ROUTES:
            match = re.fullmatch(pattern, self.route)
            if match and self.command in method:
                answer(self, *match.groups())
                return
        self._error(404, "EntryNotFound")

    def _read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _answer(self, content: Any = None, status: int = 200, **headers: str):
        data = content if isinstance(content, bytes) else json.dumps(content or {}).encode()
        self.send_response(status)
        headers.setdefault("Content-Type", "application/json")
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _error(self, status: int, code: str, message: str = ""):
        self._answer({"error": message or code}, status, **{"X-Error-Code": code, "X-Error-Message": message or code})

    def _may_write(self) -> bool:
        if self.headers.get("Authorization") == f"Bearer {TOKEN}":
            return True
        self._error(401, "", "Invalid credentials in Authorization header")
        return False

    def _find(self, name: str, revision: str = "main") -> Commit | None:
        repository = self.hub.repositories.get(name)
        if repository is None or (repository.private and self.headers.get("Authorization") != f"Bearer {TOKEN}"):
            self._error(404 if self.headers.get("Authorization") else 401, "RepoNotFound", "Repository not found")
            return None
        commit = repository.commit(revision)
        if commit is None:
            self._error(404, "RevisionNotFound")
        return commit

    def create(self):
        if not self._may_write():
            return
        fields = json.loads(self.body)
        owner = fields.get("organization") or USER
        if owner != USER:
            self._error(403, "", f"You don't have the rights to create a model under the namespace {owner!r}")
            return
        name = f"{owner}/{fields['name']}"
        answer = {"url": f"{self.hub.url}/{name}", "name": name, "id": name}
        if name in self.hub.repositories:
            self._answer({**answer, "error": "You already created this model repo"}, 409)
            return
        repository = Repository(private=bool(fields.get("private")) or fields.get("visibility") == "private")
        self.hub.repositories[name] = repository
        self.hub.add_commit(repository, "initial commit", {".gitattributes": b"*.safetensors filter=lfs\n"})
        self._answer(answer)

    def validate_yaml(self):
        text = json.loads(self.body)["content"]
        if text.startswith("---\n") and "\n---\n" in text[4:]:
            self._answer({"errors": [], "warnings": []})
        else:
            self._answer({"errors": [], "warnings": [{"message": "empty or missing yaml metadata in repo card"}]})

    def preupload(self, name: str, revision: str):
        if not self._may_write() or not self._find(name, revision):
            return
        files = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if _is_large(file["path"], file["size"]) else "regular",
                "shouldIgnore": False,
            }
            for file in json.loads(self.body)["files"]
        ]
        self._answer({"files": files})

    def lfs_batch(self, name: str):
        if not self._may_write() or not self._find(name):
            return
        objects = []
        for item in json.loads(self.body)["objects"]:
            entry = {"oid": item["oid"], "size": item["size"]}
            if (name, item["oid"]) not in self.hub.large_files:
                entry["actions"] = {
                    "upload": {"href": f"{self.hub.url}/lfs/{name}/{item['oid']}", "header": {}},
                    "verify": {"href": f"{self.hub.url}/{name}.git/info/lfs/verify", "header": {}},
                }
            objects.append(entry)
        self._answer({"transfer": "basic", "objects": objects})

    def lfs_put(self, name: str, oid: str):
        if hashlib.sha256(self.body).hexdigest() != oid:
            self._error(400, "", "the content is not what its name says")
            return
        self.hub.large_files[name, oid] = self.body
        self._answer()

    def lfs_verify(self, name: str):
        fields = json.loads(self.body)
        content = self.hub.large_files.get((name, fields["oid"]))
        if content is None or len(content) != fields["size"]:
            self._error(404, "EntryNotFound")
        else:
            self._answer()

    def commit(self, name: str, revision: str):
        if not self._may_write() or not self._find(name, revision):
            return
        lines = [json.loads(line) for line in self.body.splitlines()]
        summary = next(line["value"]["summary"] for line in lines if line["key"] == "header")
        changes = {}
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                assert value["encoding"] == "base64"
                changes[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                changes[value["path"]] = self.hub.large_files[name, value["oid"]]
        commit = self.hub.add_commit(self.hub.repositories[name], summary, changes)
        self._answer(
            {"success": True, "commitOid": commit.oid, "commitUrl": f"{self.hub.url}/{name}/commit/{commit.oid}"}
        )

    def info(self, name: str, revision: str | None = None):
        commit = self._find(name, revision or "main")
        if commit:
            siblings = [{"rfilename": path} for path in sorted(commit.files)]
            private = self.hub.repositories[name].private
            self._answer({"id": name, "modelId": name, "sha": commit.oid, "private": private, "siblings": siblings})

    def tree(self, name: str, revision: str, folder: str = ""):
        commit = self._find(name, revision)
        if not commit:
            return
        if folder:
            # There are no folders in the repositories of these tests.
            self._error(404, "EntryNotFound")
            return
        entries = []
        for path, content in sorted(commit.files.items()):
            entry = {"type": "file", "path": path, "size": len(content), "oid": _git_oid(content)}
            if _is_large(path, len(content)):
                entry["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
            entries.append(entry)
        self._answer(entries)

    def resolve(self, name: str, revision: str, path: str):
        commit = self._find(name, revision)
        if not commit:
            return
        content = commit.files.get(path)
        if content is None:
            self._answer(
                {"error": "Entry not found"},
                404,
                **{"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit.oid, "X-Error-Message": "Entry not found"},
            )
            return
        headers = {"X-Repo-Commit": commit.oid, "ETag": f'"{_git_oid(content)}"', "Accept-Ranges": "bytes"}
        if _is_large(path, len(content)):
            oid = hashlib.sha256(content).hexdigest()
            headers |= {"X-Linked-ETag": f'"{oid}"', "X-Linked-Size": str(len(content)), "ETag": f'"{oid}"'}
        self._answer(content, **{"Content-Type": "application/octet-stream", **headers})


def _git_oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


NAME = r"([\w.-]+/[\w.-]+)"
ROUTES = [
    (("POST",), "/api/repos/create", _Handler.create),
    (("POST",), "/api/validate-yaml", _Handler.validate_yaml),
    (("POST",), rf"/api/models/{NAME}/preupload/(.+)", _Handler.preupload),
    (("POST",), rf"/api/models/{NAME}/commit/(.+)", _Handler.commit),
    (("POST",), rf"/{NAME}\.git/info/lfs/objects/batch", _Handler.lfs_batch),
    (("PUT",), rf"/lfs/{NAME}/(\w+)", _Handler.lfs_put),
    (("POST",), rf"/{NAME}\.git/info/lfs/verify", _Handler.lfs_verify),
    (("GET", "HEAD"), rf"/api/models/{NAME}/revision/(.+)", _Handler.info),
    (("GET", "HEAD"), rf"/api/models/{NAME}/tree/([^/]+)(?:/(.+))?", _Handler.tree),
    (("GET", "HEAD"), rf"/api/models/{NAME}", _Handler.info),
    (("GET", "HEAD"), rf"/{NAME}/resolve/([^/]+)/(.+)", _Handler.resolve),
]
