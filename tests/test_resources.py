"""Files from package, cache, mirror and network: checked by sha256, and never left incomplete."""

import hashlib
import http.server
import threading
import urllib.request

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
    """A web server that returns `server.responses[path]`."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            server.requests.append(self.path)
            body = server.responses.get(self.path)
            self.send_response(200 if body is not None else 404)
            missing = 100 if self.path == "/broken" else 0
            self.send_header("Content-Length", str(len(body or b"") + missing))
            self.end_headers()
            self.wfile.write(body or b"")

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.responses, server.requests = {"/good": CONTENT, "/bad": b"<html>log in</html>"}, []
    server.responses["/broken"] = CONTENT  # the connection closes 100 bytes too early
    server.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def write_file(path, content=CONTENT):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def test_downloaded_once_then_from_the_cache(server, cache):
    for _ in range(2):
        assert resources.find("set/a.txt", DIGEST, url=f"{server.url}/good") == cache / "set/a.txt"
    assert server.requests == ["/good"]
    assert [file.name for file in (cache / "set").iterdir()] == ["a.txt"]


def test_a_damaged_cache_is_downloaded_again(server, cache):
    write_file(cache / "set/a.txt", b"damaged")
    assert resources.find("set/a.txt", DIGEST, url=f"{server.url}/good").read_bytes() == CONTENT


def test_a_mirror_saves_the_download(server, tmp_path, monkeypatch):
    mirrored = write_file(tmp_path / "mirror" / "set/a.txt")
    assert resources.find("set/a.txt", DIGEST, mirror=tmp_path / "mirror", url=f"{server.url}/good") == mirrored
    monkeypatch.setenv("GPT2LAB_MIRROR", str(tmp_path / "mirror"))
    assert resources.find("set/a.txt", DIGEST, url=f"{server.url}/good") == mirrored
    assert resources.find("set/a.txt", DIGEST) == mirrored
    assert server.requests == []


def test_a_variable_that_names_a_missing_mirror_is_named(server, tmp_path, monkeypatch):
    (tmp_path / "mirror").mkdir()
    monkeypatch.setenv("GPT2LAB_MIRROR", str(tmp_path / "miror"))
    with pytest.raises(GPT2LabError, match=r"\$GPT2LAB_MIRROR .*miror: no such folder; did you mean .*/mirror\?"):
        resources.find("set/a.txt", DIGEST, url=f"{server.url}/good")
    assert server.requests == []


def test_a_download_with_another_sha256_is_refused_and_not_kept(server, cache):
    with pytest.raises(GPT2LabError, match="/bad.*sha256.*or \\$GPT2LAB_MIRROR$"):
        resources.find("set/a.txt", DIGEST, url=f"{server.url}/bad")
    assert list((cache / "set").iterdir()) == []


def test_a_download_that_ends_early_is_refused_and_not_kept(server, cache):
    with pytest.raises(GPT2LabError, match="/broken.*100 more"):
        resources.find("set/a.txt", None, url=f"{server.url}/broken")
    assert not (cache / "set").exists()


def test_a_download_shows_progress_from_the_moment_it_connects(server, monkeypatch, phases):
    urlopen, shown = urllib.request.urlopen, []

    def connect(*arguments, **keywords):
        shown.extend(phase.total for phase in phases.open)
        return urlopen(*arguments, **keywords)

    monkeypatch.setattr(urllib.request, "urlopen", connect)
    resources.find("set/a.txt", DIGEST, url=f"{server.url}/good")
    assert shown == [None]
    assert [(phase.total, phase.completed) for phase in phases.begun] == [(len(CONTENT), len(CONTENT))]


@pytest.mark.parametrize("url", ["{server}/nothing", "http://127.0.0.1:9/a", "http://no-such-host.invalid/a"])
def test_without_a_network_the_error_names_the_mirror_option(server, url):
    with pytest.raises(GPT2LabError, match=r"set/a\.txt .*--mirror"):
        resources.find("set/a.txt", DIGEST, url=url.format(server=server.url))


def test_a_mirror_that_lacks_the_file_is_named(server, tmp_path):
    for mirror, problem in ((tmp_path, r"has no set/a\.txt"), (tmp_path / "absent", "is not a folder")):
        with pytest.raises(GPT2LabError, match=f"the mirror {mirror} {problem}"):
            resources.find("set/a.txt", DIGEST, mirror=mirror, url=f"{server.url}/nothing")


def test_a_file_without_a_url(tmp_path):
    with pytest.raises(GPT2LabError, match="set/a.txt"):
        resources.find("set/a.txt", DIGEST)
    write_file(tmp_path / "set/a.txt", b"wrong")
    with pytest.raises(GPT2LabError, match="a.txt.*sha256"):
        resources.find("set/a.txt", DIGEST, mirror=tmp_path)


def test_location_of_the_cache(monkeypatch, tmp_path):
    assert resources.cache_folder() == tmp_path / "cache"
    monkeypatch.delenv("GPT2LAB_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert resources.cache_folder() == tmp_path / "xdg" / "gpt2lab"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resources.cache_folder() == tmp_path / ".cache" / "gpt2lab"
