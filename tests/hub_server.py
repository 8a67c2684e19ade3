# Copyright 2026 The AGE-VLM authors. All rights reserved.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""A Hub on this machine: as much of its protocol as `huggingface_hub` (2.4, without Xet) uses to push and to load models."""

import base64
import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from fnmatch import fnmatch
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

import yaml


TOKEN = "hf_" + "a" * 34
LFS = ("*.safetensors", "*.bin", "*.pt", "*.pth", "*.pkl", "*.parquet")
REPO = r"/api/(?:models|datasets|spaces)/(?P<repo>[^/]+/[^/]+)"


@dataclass
class Commit:
    oid: str
    message: str
    files: dict[str, bytes]  # all of the repository at this commit


@dataclass
class Repo:
    private: bool
    gated: bool = False
    commits: list[Commit] = field(default_factory=list)
    branches: dict[str, Commit] = field(default_factory=dict)

    def add(self, branch: str, message: str, files: dict[str, bytes]) -> Commit:
        oid = hashlib.sha1(f"{len(self.commits)} {message}".encode()).hexdigest()
        self.commits.append(Commit(oid, message, files))
        self.branches[branch] = self.commits[-1]
        return self.commits[-1]

    def find(self, revision: str) -> Commit | None:
        return self.branches.get(revision) or next((c for c in self.commits if c.oid == revision), None)

    @property
    def pushed(self) -> list[Commit]:
        """All commits but the first, which the Hub makes itself."""
        return self.commits[1:]


def is_lfs(path: str) -> bool:
    return any(fnmatch(path, pattern) for pattern in LFS)


def oid_of(path: str, content: bytes) -> str:
    """As git, or git LFS, names a file's content."""
    if is_lfs(path):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()


class HubServer(ThreadingHTTPServer):
    """Repositories in memory. `requests` holds each request's method and path; `unknown` those it has no answer to."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.storage = f"http://localhost:{self.server_port}"  # large files come from another host, without the token
        self.repos: dict[str, Repo] = {}
        self.objects: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.unknown: list[str] = []
        self.lock = threading.Lock()

    def __enter__(self) -> "HubServer":
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self.shutdown()
        self.server_close()

    def create(self, repo_id: str, private: bool = False) -> Repo:
        self.repos[repo_id] = Repo(private)
        self.repos[repo_id].add("main", "initial commit", {".gitattributes": b"*.safetensors filter=lfs\n"})
        return self.repos[repo_id]

    def environment(self, home: str) -> dict[str, str]:
        """For a process that is to take this for the Hub."""
        return {
            "HF_ENDPOINT": self.url,
            "HF_HOME": home,
            "HF_TOKEN": TOKEN,
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "NO_PROXY": "127.0.0.1,localhost",
            "no_proxy": "127.0.0.1,localhost",
        }


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: HubServer
    ROUTES = (
        ("GET", r"/api/agent-harnesses", "nothing"),
        ("POST", r"/api/repos/create", "create_repo"),
        ("POST", r"/api/validate-yaml", "validate_yaml"),
        ("POST", REPO + r"/preupload/(?P<revision>[^/]+)", "preupload"),
        ("POST", REPO + r"/commit/(?P<revision>[^/]+)", "commit"),
        ("POST", REPO + r"/branch/(?P<branch>[^/]+)", "branch"),
        ("GET", REPO + r"(/revision/(?P<revision>[^/]+))?", "info"),
        ("GET", REPO + r"/refs", "refs"),
        ("GET", REPO + r"/tree/(?P<revision>[^/]+)(/(?P<folder>.+))?", "tree"),
        ("POST", r"/(?:datasets/)?(?P<repo>[^/]+/[^/]+)\.git/info/lfs/objects/batch", "lfs_batch"),
        ("PUT", r"/lfs/(?P<oid>\w+)", "lfs_upload"),
        ("GET", r"/lfs/(?P<oid>\w+)", "lfs_download"),
        ("GET", r"/(?:datasets/)?(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)", "resolve"),
    )

    def do_GET(self) -> None:
        self.body = self.read_body()
        path = urlsplit(self.path).path
        with self.server.lock:
            self.server.requests.append(f"{self.command} {path}")
            method = "GET" if self.command == "HEAD" else self.command
            for verb, pattern, name in self.ROUTES:
                match = re.fullmatch(pattern, path)
                if verb == method and match:
                    arguments = {k: v and unquote(v) for k, v in match.groupdict().items()}
                    if self.is_allowed(arguments):
                        getattr(self, name)(**arguments)
                    return
            self.server.unknown.append(f"{self.command} {self.path}")
            self.answer({"error": "not found"}, status=404)

    do_HEAD = do_POST = do_PUT = do_GET

    def log_message(self, *arguments: object) -> None:
        pass

    def read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            chunks = []
            while size := int(self.rfile.readline(), 16):
                chunks.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(chunks)
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def answer(self, content: bytes | dict | list, status: int = 200, **headers: str) -> None:
        content = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def refuse(self, status: int, code: str, **headers: str) -> None:
        self.answer({"error": code}, status=status, X_Error_Code=code, X_Error_Message=code, **headers)

    def is_allowed(self, arguments: dict[str, str]) -> bool:
        """Answers itself where it is not: repositories are written, and private ones read, with the token only."""
        known = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        repo = self.server.repos.get(arguments.get("repo"))
        if "repo" in arguments and (repo is None or (repo.private and not known)):
            self.refuse(404 if known else 401, "RepoNotFound")
            return False
        if self.command == "POST" and not known:
            self.refuse(401, "Unauthorized")
            return False
        return True

    def find(self, repo: str, revision: str | None) -> Commit | None:
        commit = self.server.repos[repo].find(revision or "main")
        if commit is None:
            self.refuse(404, "RevisionNotFound")
        return commit

    def nothing(self) -> None:
        self.answer({})

    def create_repo(self) -> None:
        request = json.loads(self.body)
        repo_id = f"{request['organization']}/{request['name']}"
        exists = repo_id in self.server.repos
        if not exists:
            self.server.create(repo_id, private=request.get("visibility") == "private")
        self.answer({"url": f"{self.server.url}/{repo_id}"}, status=409 if exists else 200)

    def validate_yaml(self) -> None:
        header = re.match(r"---\n(.*?)\n---\n", json.loads(self.body)["content"], flags=re.DOTALL)
        try:
            valid = isinstance(yaml.safe_load(header.group(1)), dict) if header else False
        except yaml.YAMLError:
            valid = False
        self.answer({} if valid else {"errors": [{"message": "no valid metadata"}]}, status=200 if valid else 400)

    def preupload(self, repo: str, revision: str) -> None:
        if commit := self.find(repo, revision):
            paths = [file["path"] for file in json.loads(self.body)["files"]]
            files = [
                {
                    "path": path,
                    "uploadMode": "lfs" if is_lfs(path) else "regular",
                    "shouldIgnore": False,
                    "oid": oid_of(path, commit.files[path]) if path in commit.files else None,
                }
                for path in paths
            ]
            self.answer({"files": files})

    def lfs_batch(self, repo: str) -> None:
        objects = []
        for entry in json.loads(self.body)["objects"]:
            upload = {"upload": {"href": f"{self.server.url}/lfs/{entry['oid']}"}}
            objects.append(entry if entry["oid"] in self.server.objects else {**entry, "actions": upload})
        self.answer({"transfer": "basic", "objects": objects})

    def lfs_upload(self, oid: str) -> None:
        if hashlib.sha256(self.body).hexdigest() != oid:
            return self.refuse(400, "BadDigest")
        self.server.objects[oid] = self.body
        self.answer(b"")

    def lfs_download(self, oid: str) -> None:
        self.answer(self.server.objects[oid])

    def commit(self, repo: str, revision: str) -> None:
        """Fails as a whole where it would delete what is not there, or refers to a large file that was not uploaded."""
        parent = self.server.repos[repo].branches.get(revision)
        if parent is None:
            return self.refuse(404, "RevisionNotFound")
        files, message = dict(parent.files), None
        for line in self.body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            match entry["key"]:
                case "header":
                    message = value["summary"]
                case "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                case "lfsFile" if value["oid"] in self.server.objects:
                    files[value["path"]] = self.server.objects[value["oid"]]
                case "deletedFile" if value["path"] in files:
                    del files[value["path"]]
                case _:
                    return self.refuse(400, "BadCommit")
        oid = self.server.repos[repo].add(revision, message, files).oid
        self.answer({"success": True, "commitOid": oid, "commitUrl": f"{self.server.url}/{repo}/commit/{oid}"})

    def branch(self, repo: str, branch: str) -> None:
        branches = self.server.repos[repo].branches
        if branch in branches:
            return self.refuse(409, "Conflict")
        branches[branch] = branches["main"]
        self.answer({})

    def info(self, repo: str, revision: str | None) -> None:
        if commit := self.find(repo, revision):
            siblings = [{"rfilename": path} for path in commit.files]
            private = self.server.repos[repo].private
            self.answer({"id": repo, "sha": commit.oid, "private": private, "siblings": siblings})

    def refs(self, repo: str) -> None:
        branches = self.server.repos[repo].branches.items()
        entries = [{"name": n, "ref": f"refs/heads/{n}", "targetCommit": commit.oid} for n, commit in branches]
        self.answer({"branches": entries, "tags": [], "converts": []})

    def tree(self, repo: str, revision: str, folder: str | None) -> None:
        if commit := self.find(repo, revision):
            prefix = f"{folder}/" if folder else ""
            paths = [path for path in commit.files if path.startswith(prefix)]
            if folder and not paths:
                return self.refuse(404, "EntryNotFound")
            self.answer([self.tree_entry(path, commit.files[path]) for path in paths])

    def tree_entry(self, path: str, content: bytes) -> dict:
        entry = {"type": "file", "path": path, "size": len(content), "oid": oid_of(path, content)}
        lfs = {"size": len(content), "oid": oid_of(path, content), "pointerSize": 134}
        return {**entry, "lfs": lfs} if is_lfs(path) else entry

    def resolve(self, repo: str, revision: str, path: str) -> None:
        if self.server.repos[repo].gated:  # everybody sees that it is there
            return self.refuse(401 if self.headers.get("Authorization") is None else 403, "GatedRepo")
        if not (commit := self.find(repo, revision)):
            return
        if path not in commit.files:
            return self.refuse(404, "EntryNotFound", X_Repo_Commit=commit.oid)
        content = commit.files[path]
        oid = oid_of(path, content)
        if is_lfs(path):
            linked = {"X_Linked_Etag": f'"{oid}"', "X_Linked_Size": str(len(content))}
            location = f"{self.server.storage}/lfs/{oid}"
            return self.answer(b"", status=302, X_Repo_Commit=commit.oid, Location=location, **linked)
        self.answer(content, ETag=f'"{oid}"', X_Repo_Commit=commit.oid)
