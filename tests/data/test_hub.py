"""FineWeb-Edu from a local server that behaves like the Hub: busy at first, with broken downloads, then offline."""

import hashlib
import http.server
import json
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from gpt2lab.data.prepare import make
from gpt2lab.data.sources import fineweb
from gpt2lab.errors import GPT2LabError
from gpt2lab.options import PrepareOptions
from tests.data import corpora

REPOSITORY = Path(__file__).parent.parent.parent
OPTIONS = ["--shard-size", "3000", "--val-tokens", "2500", "--workers", "2"]


class Hub(http.server.BaseHTTPRequestHandler):
    """The three requests that a download takes: the list of a folder, a file's head, a file."""

    protocol_version = "HTTP/1.1"

    def do_HEAD(self):
        self.answer(head=True)

    def do_GET(self):
        self.answer()

    def answer(self, head=False):
        hub, path = self.server, self.path.partition("?")[0]
        hub.asked.append((self.command, path, self.headers.get("Authorization")))
        if hub.busy > 0:
            hub.busy -= 1
            return self.send(429, b"", {"Retry-After": "1"})
        if path.startswith(f"/api/datasets/{fineweb.EDU.repository}/tree/{fineweb.EDU.revision}/sample"):
            return self.send(200, json.dumps(hub.listing).encode(), {"Content-Type": "application/json"})
        name = path.removeprefix(f"/datasets/{fineweb.EDU.repository}/resolve/{fineweb.EDU.revision}/")
        if not (hub.root / name).is_file():
            return self.send(404, b"", {"X-Error-Code": "EntryNotFound"})
        body = (hub.root / name).read_bytes()
        headers = {"ETag": f'"{hashlib.sha256(body).hexdigest()}"', "X-Repo-Commit": fineweb.EDU.revision}
        start = int(re.findall(r"\d+", self.headers.get("Range", "0"))[0])
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
        broken = not head and name in hub.breaks and not start
        return self.send(206 if start else 200, body[start:], headers, head, broken)

    def send(self, status, body, headers, head=False, broken=False):
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if not head:
            self.wfile.write(body[: len(body) // 2] if broken else body)
        if broken:
            self.server.breaks.clear()
            self.close_connection = True

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(tmp_path):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.root = corpora.mirror(tmp_path / "mirror", files=6, count=300)
    server.listing = []
    for file in sorted(server.root.rglob("*.parquet")):
        digest, size = hashlib.sha256(file.read_bytes()).hexdigest(), file.stat().st_size
        lfs = {"oid": digest, "size": size, "pointerSize": 134}
        name = str(file.relative_to(server.root))
        server.listing.append({"type": "file", "oid": digest[:40], "size": size, "path": name, "lfs": lfs})
    server.asked, server.busy, server.breaks = [], 0, set()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def prepare(hub, tmp_path, out, *options, **environment):
    settings = {
        "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}",
        "HF_HOME": str(tmp_path / "hf"),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "PYTHONPATH": str(REPOSITORY),
        "NO_PROXY": "127.0.0.1",
    }
    command = [
        sys.executable,
        "-m",
        "gpt2lab",
        "prepare",
        "fineweb-edu",
        "--out",
        str(tmp_path / out),
        *OPTIONS,
        *options,
    ]
    environment = {key: value for key, value in os.environ.items() if key != "GPT2LAB_MIRROR"} | settings | environment
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_downloads_with_retries_then_offline(hub, tmp_path):
    hub.busy, hub.breaks = 1, {hub.listing[1]["path"]}
    done = prepare(hub, tmp_path, "out", HF_TOKEN="hf_secret")
    assert done.returncode == 0, done.stdout + done.stderr
    make(
        fineweb.source(mirror=hub.root),
        tmp_path / "local",
        PrepareOptions("files", shard_size=3000, val_tokens=2500),
    )
    shards = {name: data for name, data in corpora.contents(tmp_path / "out").items() if name.endswith(".npy")}
    assert shards == {
        name: data for name, data in corpora.contents(tmp_path / "local").items() if name.endswith(".npy")
    }
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    assert manifest["revision"] == f"{fineweb.EDU.repository} {fineweb.EDU.revision[:12]} sample/10BT"
    assert "hf_secret" in str(hub.asked)
    assert "hf_secret" not in done.stdout + done.stderr
    got = [path for command, path, _ in hub.asked if command == "GET" and "/resolve/" in path]
    assert len(got) >= 7 > len(set(got)) == 6  # the one that broke off was asked for again

    hub.asked.clear()
    again = prepare(hub, tmp_path, "offline", HF_HUB_OFFLINE="1")
    assert again.returncode == 0, again.stdout + again.stderr
    assert hub.asked == []
    assert corpora.contents(tmp_path / "offline") == corpora.contents(tmp_path / "out")


def test_only_what_is_needed_is_downloaded(hub, tmp_path):
    done = prepare(hub, tmp_path, "out", "--shards", "2")
    assert done.returncode == 0, done.stdout + done.stderr
    got = {path for command, path, _ in hub.asked if command == "GET" and "/resolve/" in path}
    assert len(got) < 6


def test_offline_without_a_cache_is_one_line_that_names_the_mirror(hub, tmp_path):
    done = prepare(hub, tmp_path, "out", HF_HUB_OFFLINE="1")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("gpt2lab: HuggingFaceFW/fineweb-edu")
    assert "--mirror" in done.stderr


def test_retries_are_limited(monkeypatch):
    waited = []
    monkeypatch.setattr(fineweb.time, "sleep", waited.append)

    def unreachable():
        raise ConnectionError("no route to host")

    with pytest.raises(GPT2LabError, match=r"no route to host.*--mirror"):
        fineweb._retry(fineweb.EDU, unreachable, "it")
    assert waited == list(fineweb._RETRY_SECONDS)
    waited.clear()
    with pytest.raises(GPT2LabError, match="--mirror"):
        fineweb._retry(fineweb.EDU, unreachable, "it", pauses=())
    assert waited == []

    def a_bug():
        raise KeyError("x")

    with pytest.raises(KeyError):
        fineweb._retry(fineweb.EDU, a_bug, "it")
