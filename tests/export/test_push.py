"""`gpt2lab export --push`, against a small stand-in of the Hub's API."""

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from gpt2lab import GPT2Config, cli
from tests.model.test_huggingface import random_model

TOKEN = "hf_standin"


class Hub(BaseHTTPRequestHandler):
    """Repositories in memory: creation, information, and commits with small files inside and large ones by LFS."""

    repositories: dict[str, dict]  # by `models/OWNER/NAME`: private, sdk and files
    objects: dict[str, bytes]
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def answer(self, value, status=200):
        body = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("X-Error-Message", "refused by the stand-in") if status >= 400 else None
        self.end_headers()
        self.wfile.write(body)

    def handle_request(self, body):
        path = self.path.partition("?")[0].strip("/").split("/")
        address = f"http://127.0.0.1:{self.server.server_port}"
        if path[0] == "objects":
            self.objects[path[1]] = body
            return self.answer(b"")
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self.answer({"error": "Invalid credentials"}, 401)
        if path == ["api", "repos", "create"]:
            wanted = json.loads(body)
            owner = wanted.get("organization") or "me"
            if owner == "others":
                return self.answer({"error": "no right"}, 403)
            name = f"{wanted.get('type', 'model')}s/{owner}/{wanted['name']}"
            if name in self.repositories:
                return self.answer({"url": f"{address}/{name}"}, 409)
            private = wanted.get("private", wanted.get("visibility") == "private")
            self.repositories[name] = {"private": private, "sdk": wanted.get("sdk"), "files": {}}
            return self.answer({"url": f"{address}/{owner}/{wanted['name']}"})
        if path[:2] == ["api", "validate-yaml"]:
            return self.answer({"errors": [], "warnings": []})
        if path[-4:] == ["info", "lfs", "objects", "batch"]:
            objects = [
                {**each, "actions": {"upload": {"href": f"{address}/objects/{each['oid']}"}}}
                for each in json.loads(body)["objects"]
            ]
            return self.answer({"transfer": "basic", "objects": objects})
        repository = self.repositories.get("/".join(path[1:4]))
        if repository is None:
            return self.answer({"error": "not found"}, 404)
        if path[4:5] == ["preupload"]:
            modes = [
                {"path": file["path"], "uploadMode": "lfs" if file["path"].endswith("tensors") else "regular"}
                for file in json.loads(body)["files"]
            ]
            return self.answer({"files": [mode | {"shouldIgnore": False, "oid": None} for mode in modes]})
        if path[4:5] == ["commit"]:
            for line in filter(None, body.decode().split("\n")):
                operation = json.loads(line)
                value = operation["value"]
                if operation["key"] == "file":
                    repository["files"][value["path"]] = base64.b64decode(value["content"])
                elif operation["key"] == "lfsFile":
                    repository["files"][value["path"]] = self.objects[value["oid"]]
            page = "/".join(path[2:4] if path[1] == "models" else path[1:4])
            return self.answer({"commitUrl": f"{address}/{page}/commit/1", "commitOid": "1" * 40, "success": True})
        return self.answer({"id": "/".join(path[2:4]), "private": repository["private"], "sha": "0" * 40})

    def do_GET(self):
        self.handle_request(b"")

    def do_POST(self):
        self.handle_request(self.rfile.read(int(self.headers.get("Content-Length", 0))))

    do_PUT = do_POST  # noqa: N815


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """The handler class of a running stand-in, with the token in the environment."""
    from huggingface_hub import constants

    handler = type("Handler", (Hub,), {"repositories": {}, "objects": {}})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "127.0.0.1")
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no token"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # the Hub's own protocol for large files
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    yield handler
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("source")
    random_model(GPT2Config(n_layer=1, n_head=2, n_embd=8, block_size=16)).save_pretrained(folder)
    return folder


def export(source, *options):
    return cli.main(["export", "--model-checkpoint", str(source), *map(str, options)])


def test_an_upload_has_the_files_of_the_export_and_is_private(hub, source, tmp_path, capsys):
    assert export(source, "--out", tmp_path / "out", "--push", "me/mine") == 0, capsys.readouterr().err
    assert "uploaded to http://127.0.0.1" in capsys.readouterr().out
    (repository,) = hub.repositories.values()
    assert list(hub.repositories) == ["models/me/mine"]
    assert repository["private"]
    assert repository["files"] == {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()}
    assert export(source, "--push", "me/mine", "--dtype", "bf16") == 0  # again, without a folder that is kept
    assert len(repository["files"]["model.safetensors"]) < (tmp_path / "out" / "model.safetensors").stat().st_size


def test_a_space_is_uploaded_as_a_space(hub, source, tmp_path):
    assert export(source, "--space", tmp_path / "space", "--push", "me/try-it", "--public") == 0
    repository = hub.repositories["spaces/me/try-it"]
    assert not repository["private"]
    assert repository["sdk"] == "gradio"
    assert {"app.py", "requirements.txt", "model.safetensors"} <= repository["files"].keys()


def test_a_public_repository_is_not_written_to_without_public(hub, source, capsys):
    hub.repositories["models/me/known"] = {"private": False, "sdk": None, "files": {}}
    assert export(source, "--push", "me/known") == 2
    assert "is public" in capsys.readouterr().err
    assert not hub.repositories["models/me/known"]["files"]
    assert export(source, "--push", "me/known", "--public") == 0
    assert hub.repositories["models/me/known"]["files"]


def test_a_dry_run_lists_the_files_without_a_login_and_changes_nothing(hub, source, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    assert export(source, "--space", tmp_path / "space", "--push", "me/mine", "--dry-run") == 0
    out = capsys.readouterr().out
    assert "to the private space me/mine" in out
    assert "written to" not in out  # a folder that is gone
    assert all(f"  {name}  " in out for name in ("app.py", "model.safetensors", "README.md", "tokenizer.json"))
    assert not hub.repositories
    assert not (tmp_path / "space").exists()


@pytest.mark.parametrize(
    ("options", "environment", "key"),
    [
        (["--push", "me/mine"], {"HF_TOKEN": ""}, "hf auth login"),
        (["--push", "me/mine"], {"HF_TOKEN": "wrong"}, "hf auth login"),
        (["--push", "others/mine"], {}, "no right"),
        (["--push", "me/mine"], {"HF_ENDPOINT": "http://127.0.0.1:9"}, "cannot be reached"),
        (["--push", "mine"], {}, "OWNER/NAME"),
        (["--push", "me/mi ne"], {}, "me/mi ne"),
        (["--push", "a/b/c"], {}, "a/b/c"),
        (["--push", "mine", "--dry-run"], {"HF_TOKEN": ""}, "OWNER/NAME"),
        (["--push", "../x/y", "--dry-run"], {"HF_TOKEN": ""}, "../x/y"),
        (["--public", "--out", "x"], {}, "--push"),
        (["--dry-run", "--out", "x"], {}, "--push"),
        (["--out", "x", "--space", "y"], {}, "--space"),
        ([], {}, "--out"),
    ],
)
def test_what_cannot_be_uploaded_is_one_line(hub, source, tmp_path, capsys, monkeypatch, options, environment, key):
    monkeypatch.chdir(tmp_path)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert export(source, *options) == 2
    error = capsys.readouterr().err
    assert key in error
    assert error.count("\n") == 1
    assert not hub.repositories
    assert not list(tmp_path.iterdir())
