"""Files from package, cache, mirror and network: the sha256 decides, and nothing half is ever left."""

import hashlib
import http.server
import threading

import pytest

from gpt2lab import resources
from gpt2lab.errors import GPT2LabError

CONTENT = b"the right file"
DIGEST = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("GPT2LAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("GPT2LAB_MIRROR", raising=False)
    return tmp_path / "cache"


@pytest.fixture
def server():
    """A web server; `server.answers[path]` is what it gives."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            server.asked.append(self.path)
            body = server.answers.get(self.path)
            self.send_response(200 if body is not None else 404)
            self.send_header("Content-Length", str(len(body or b"")))
            self.end_headers()
            self.wfile.write(body or b"")

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.answers, server.asked = {"/good": CONTENT, "/bad": b"<html>log in</html>"}, []
    server.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def put(path, content=CONTENT):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def test_downloaded_once_then_from_the_cache(server, cache):
    for _ in range(2):
        assert resources.find("set/a.txt", DIGEST, url=f"{server.url}/good") == cache / "set/a.txt"
    assert server.asked == ["/good"]
    assert [file.name for file in (cache / "set").iterdir()] == ["a.txt"]


def test_a_damaged_cache_is_downloaded_again(server, cache):
    put(cache / "set/a.txt", b"damaged")
    assert resources.find("set/a.txt", DIGEST, url=f"{server.url}/good").read_bytes() == CONTENT


def test_a_mirror_saves_the_download(server, tmp_path, monkeypatch):
    mirrored = put(tmp_path / "mirror" / "set/a.txt")
    assert resources.find("set/a.txt", DIGEST, mirror=tmp_path / "mirror", url=f"{server.url}/good") == mirrored
    monkeypatch.setenv("GPT2LAB_MIRROR", str(tmp_path / "mirror"))
    assert resources.find("set/a.txt", DIGEST, url=f"{server.url}/good") == mirrored
    assert resources.find("set/a.txt", DIGEST) == mirrored
    assert server.asked == []


def test_another_file_than_expected_is_refused_and_not_kept(server, cache):
    with pytest.raises(GPT2LabError, match=r"/bad gave another file than expected \(19 bytes"):
        resources.find("set/a.txt", DIGEST, url=f"{server.url}/bad")
    assert list((cache / "set").iterdir()) == []


@pytest.mark.parametrize("url", ["{server}/nothing", "http://127.0.0.1:9/a", "http://no-such-host.invalid/a"])
def test_no_network_names_the_mirror_option(server, url):
    with pytest.raises(GPT2LabError, match=r"set/a\.txt cannot be downloaded from .* --mirror .* \$GPT2LAB_MIRROR"):
        resources.find("set/a.txt", DIGEST, url=url.format(server=server.url))


def test_places_without_a_url(tmp_path):
    with pytest.raises(GPT2LabError, match="it comes from a mirror folder"):
        resources.find("set/a.txt", DIGEST)
    put(tmp_path / "set/a.txt", b"wrong")
    with pytest.raises(GPT2LabError, match="its sha256 differs"):
        resources.find("set/a.txt", DIGEST, mirror=tmp_path)


def test_where_the_cache_is(monkeypatch, tmp_path):
    assert resources.cache_folder() == tmp_path / "cache"
    monkeypatch.delenv("GPT2LAB_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert resources.cache_folder() == tmp_path / "xdg" / "gpt2lab"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resources.cache_folder() == tmp_path / ".cache" / "gpt2lab"
