"""Finding models by name: folders, runs with damaged checkpoints, and a Hub that is simulated or unreachable."""

import errno
import fnmatch
import hashlib
import http.server
import json
import os
import re
import shutil
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from gpt2lab import GPT2, GPT2Config, cli, files
from gpt2lab.errors import GPT2LabError
from gpt2lab.model import resolve, weight_files
from tests.model.helpers import same_weights

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(autouse=True)
def _no_network(monkeypatch, tmp_path):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("GPT2LAB_MIRROR", raising=False)


class Hub(http.server.BaseHTTPRequestHandler):
    """Answers the requests of a snapshot: the list of files, a file's headers, a file."""

    protocol_version = "HTTP/1.1"

    def do_HEAD(self):
        self.answer()

    def do_GET(self):
        self.answer()

    def answer(self):
        hub, path = self.server, self.path.partition("?")[0]
        if asked := re.fullmatch(rf"/api/models/(.+)/(revision/main|tree/{COMMIT})", path):
            if not (hub.root / asked[1]).is_dir():
                return self.send(401, b"", {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"})
            found = sorted((hub.root / asked[1]).iterdir())
            tree = [{"type": "file", "path": f.name, "size": f.stat().st_size, "oid": "0" * 40} for f in found]
            info = {"id": asked[1], "sha": COMMIT, "siblings": [{"rfilename": f.name} for f in found]}
            return self.send(200, json.dumps(info if asked[2] == "revision/main" else tree).encode())
        name = path.replace(f"/resolve/{COMMIT}/", "/").strip("/")
        if not (hub.root / name).is_file():
            return self.send(404, b"", {"X-Error-Code": "EntryNotFound"})
        body = (hub.root / name).read_bytes()
        if self.command == "GET":
            hub.fetched.append(name)
        return self.send(200, body, {"ETag": f'"{hashlib.sha256(body).hexdigest()}"', "X-Repo-Commit": COMMIT})

    def send(self, status, body, headers=()):
        self.send_response(status)
        for key, value in dict(headers).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A Hub with the models that a test puts into `hub.root`; `hub.fetched` lists the files that were downloaded."""
    from huggingface_hub import constants

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.root, server.fetched = tmp_path / "hub", []
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def save(folder, seed=0):
    model = GPT2(
        GPT2Config(n_layer=1, n_head=1, n_embd=8, block_size=8, vocab_size=30),
        generator=torch.Generator().manual_seed(seed),
    )
    model.save_pretrained(folder)
    return folder


def checkpoint(run, step):
    folder = save(run / "checkpoints" / f"step_{step:08d}", seed=step)
    (folder / "state.json").write_text(f'{{"step": {step}}}')
    files.write_digests(folder)
    return folder


def test_a_models_folder_is_found(tmp_path):
    assert resolve.find_checkpoint(save(tmp_path / "m")) == resolve.ResolvedCheckpoint(tmp_path / "m")


def test_a_run_is_its_newest_intact_checkpoint(tmp_path, caplog):
    old, new = checkpoint(tmp_path / "x", 5), checkpoint(tmp_path / "x", 10)
    assert resolve.find_checkpoint(tmp_path / "x") == resolve.ResolvedCheckpoint(new, tmp_path / "x", 10)
    assert resolve.find_checkpoint(tmp_path / "x" / "checkpoints") == resolve.ResolvedCheckpoint(
        new, tmp_path / "x", 10
    )
    assert resolve.find_checkpoint(old) == resolve.ResolvedCheckpoint(old, tmp_path / "x", 5)
    (new / "model.safetensors").write_bytes(b"damaged")
    assert resolve.find_checkpoint(tmp_path / "x") == resolve.ResolvedCheckpoint(old, tmp_path / "x", 5)
    (warning,) = caplog.records
    assert warning.levelname == "WARNING"
    assert str(new) in warning.getMessage()
    assert same_weights(GPT2.from_pretrained(tmp_path / "x"), GPT2.from_pretrained(old))
    with pytest.raises(GPT2LabError, match="does not match its sha256"):
        resolve.find_checkpoint(new)
    (old / "config.json").unlink()
    with pytest.raises(GPT2LabError, match="no checkpoint is intact"):
        resolve.find_checkpoint(tmp_path / "x")


def refuse(function, name, error=errno.EACCES):
    """A replacement of a function that takes a path, which fails for a path that ends with `name`."""

    def replacement(path, *rest):
        if str(path).endswith(name):
            raise OSError(error, os.strerror(error), str(path))
        return function(path, *rest)

    return replacement


@pytest.mark.parametrize("error", [errno.EACCES, errno.EIO, errno.ESTALE])
def test_a_checkpoint_that_cannot_be_read_is_not_damaged(tmp_path, monkeypatch, caplog, error):
    checkpoint(tmp_path / "x", 5)
    path = checkpoint(tmp_path / "x", 10) / "model.safetensors"
    monkeypatch.setattr(files, "sha256", refuse(files.sha256, "step_00000010/model.safetensors", error))
    with pytest.raises(GPT2LabError) as raised:
        resolve.find_checkpoint(tmp_path / "x")
    advice = "check its owner and mode" if error == errno.EACCES else "check the disk"
    assert str(raised.value) == f"cannot read {path}: {os.strerror(error)}; {advice}"
    assert not caplog.records


def test_digests_and_weights_that_cannot_be_read_are_not_damaged(tmp_path, monkeypatch):
    path = checkpoint(tmp_path / "x", 5)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", refuse(Path.read_bytes, "SHA256SUMS"))
        with pytest.raises(GPT2LabError, match="SHA256SUMS: Permission denied; check its owner and mode$"):
            resolve.find_checkpoint(tmp_path / "x")
    monkeypatch.setattr(weight_files, "load_file", refuse(weight_files.load_file, "model.safetensors"))
    with pytest.raises(GPT2LabError, match=r"model\.safetensors: Permission denied; check its owner and mode$"):
        resolve.read(resolve.find_checkpoint(path))


def test_a_folder_of_checkpoints_that_cannot_be_read_is_not_empty(tmp_path, monkeypatch):
    folder = checkpoint(tmp_path / "x", 5).parent
    monkeypatch.setattr(os, "scandir", refuse(os.scandir, "checkpoints"))
    with pytest.raises(GPT2LabError, match=f"^cannot read {folder}: Permission denied; check its owner and mode$"):
        resolve.find_checkpoint(tmp_path / "x")


def test_a_link_to_a_disk_that_is_not_mounted_and_a_file_are_not_checkpoints(tmp_path, capsys):
    run, disk = tmp_path / "x", tmp_path / "disk"
    run.mkdir()
    (run / "checkpoints").symlink_to(disk)
    assert cli.main(["sample", "--model-checkpoint", str(run)]) == 2
    assert capsys.readouterr().err == f"gpt2lab: {run}/checkpoints is a link to {disk}, which does not exist\n"
    checkpoint(tmp_path / "y", 5).parent.rename(disk)
    assert resolve.find_checkpoint(run).step == 5
    (run / "checkpoints").unlink()
    (run / "checkpoints").touch()
    with pytest.raises(GPT2LabError, match=f"^{run}/checkpoints is a file, not a folder$"):
        resolve.find_checkpoint(run)


def test_the_check_of_a_checkpoint_shows_progress(tmp_path, monkeypatch, phases):
    folder, shown = checkpoint(tmp_path / "x", 5), []
    monkeypatch.setattr(files, "verify_digests", lambda *_, **__: shown.append(len(phases.open)))
    resolve.find_checkpoint(tmp_path / "x")
    resolve.find_checkpoint(folder)
    assert shown == [1, 1]


@pytest.mark.parametrize(
    "command",
    [
        ["evaluate", "--model-checkpoint", "gpt2", "--device", "cpu"],
        ["export", "--model-checkpoint", "gpt2", "--out", "out"],
        ["sample", "--model-checkpoint", "gpt2"],
        ["app", "--trained", "m", "--untrained", "gpt2"],
    ],
)
def test_no_phase_hides_the_bars_of_a_download_from_the_hub(monkeypatch, tmp_path, capsys, phases, command):
    monkeypatch.chdir(tmp_path)
    shown = []

    def download(*_, **__):
        shown.append([phase.description for phase in phases.open])
        raise OSError("no network")

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    save(tmp_path / "m")
    assert cli.main(command) == 2
    assert "no network" in capsys.readouterr().err
    assert shown == [[]]


def test_names_without_a_model(tmp_path):
    (tmp_path / "empty" / "checkpoints").mkdir(parents=True)
    with pytest.raises(GPT2LabError, match="has no checkpoint yet"):
        resolve.find_checkpoint(tmp_path / "empty")
    (tmp_path / "file").write_text("")
    with pytest.raises(GPT2LabError, match="not a model"):
        GPT2.from_pretrained(tmp_path / "file")
    with pytest.raises(GPT2LabError, match="no such file"):
        resolve.find_checkpoint("model_19072.pt")
    with pytest.raises(GPT2LabError, match="holds runs, not a model; none of them has a checkpoint yet"):
        resolve.find_checkpoint(tmp_path)
    save(tmp_path / "usable" / "checkpoints" / "step_00000003")
    with pytest.raises(GPT2LabError, match="holds runs, not a model; give one of them, such as .*usable"):
        resolve.find_checkpoint(tmp_path)
    for typo, meant in (("emty", False), ("usabel", True)):
        with pytest.raises(GPT2LabError) as error:
            resolve.find_checkpoint(tmp_path / typo)
        assert ("did you mean" in str(error.value)) == meant
    for name in (tmp_path / "nowhere", "runs/x", "a/b/c"):
        with pytest.raises(GPT2LabError, match="no such folder"):
            resolve.find_checkpoint(name)


def test_without_a_network_the_error_names_the_mirror(tmp_path):
    advice = r"gpt2: .*; give its folder, or .* gpt2/config.json .* as \$GPT2LAB_MIRROR$"  # sample has no --mirror
    with pytest.raises(GPT2LabError, match=advice):
        resolve.find_checkpoint("gpt2")
    with pytest.raises(GPT2LabError, match=rf"or put gpt2/config.json .* into the mirror {tmp_path}$"):
        resolve.find_checkpoint("gpt2", mirror=tmp_path)
    save(tmp_path / "gpt2")
    assert resolve.find_checkpoint("gpt2", mirror=tmp_path).folder == tmp_path / "gpt2"
    save(tmp_path / "openai-community" / "gpt2-xl")
    assert resolve.find_checkpoint("gpt2-xl", mirror=tmp_path).folder == tmp_path / "openai-community" / "gpt2-xl"


# --- The Hub.


def as_pickle(folder):
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def as_shards(folder):
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    where = {name: names[n % 2] for n, name in enumerate(tensors)}
    for part in names:
        save_file({name: tensor for name, tensor in tensors.items() if where[name] == part}, folder / part)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))


def fetched(hub) -> list[str]:
    names = sorted(os.path.basename(name) for name in hub.fetched)
    hub.fetched.clear()
    return names


@pytest.mark.parametrize(
    ("arrange", "expected"),
    [
        (lambda folder: None, ["config.json", "model.safetensors"]),
        (
            as_shards,
            [
                "config.json",
                "model-00001-of-00002.safetensors",
                "model-00002-of-00002.safetensors",
                "model.safetensors.index.json",
            ],
        ),
        (as_pickle, ["config.json", "pytorch_model.bin"]),
    ],
)
def test_a_hub_model_is_downloaded_once_and_then_available_offline(hub, monkeypatch, arrange, expected):
    from huggingface_hub import constants

    folder = save(hub.root / "openai-community" / "gpt2-medium")
    expected_model = GPT2.from_pretrained(folder)
    arrange(folder)
    for name in ("tf_model.h5", "README.md", "tokenizer.json", "training_args.bin"):
        (folder / name).write_bytes(b"not needed")

    def same() -> bool:
        return same_weights(GPT2.from_pretrained("gpt2-medium"), expected_model)

    assert same()
    assert fetched(hub) == expected
    assert same()
    assert fetched(hub) == []
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert same()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    hub.shutdown()
    hub.server_close()
    assert same()


def test_a_pickle_is_not_downloaded_if_there_are_safetensors(hub):
    for name, arrange in (("one", lambda folder: None), ("several", as_shards)):
        folder = save(hub.root / "somebody" / name)
        torch.save({}, folder / "pytorch_model.bin")
        arrange(folder)
        GPT2.from_pretrained(f"somebody/{name}")
        assert "pytorch_model.bin" not in fetched(hub)


def assert_one_line_error(name: str, match: str) -> None:
    with pytest.raises(GPT2LabError, match=match) as caught:
        GPT2.from_pretrained(name)
    assert "\n" not in str(caught.value)


def test_models_that_the_hub_lacks(hub):
    assert_one_line_error("somebody/nothing", r"somebody/nothing: .*GPT2LAB_MIRROR")
    folder = save(hub.root / "somebody" / "odd")
    (folder / "model.safetensors").rename(folder / "weights.gguf")
    assert_one_line_error("somebody/odd", "somebody/odd: .*model.safetensors, .*pytorch_model.bin")
    as_shards(folder := save(hub.root / "somebody" / "part"))
    (folder / "model-00002-of-00002.safetensors").unlink()
    assert_one_line_error("somebody/part", "model-00002-of-00002.safetensors: .*model.safetensors.index.json")
    (save(hub.root / "somebody" / "bare") / "config.json").unlink()
    assert_one_line_error("somebody/bare", "config.json")


def test_an_incomplete_download_is_rejected(hub, tmp_path, monkeypatch):
    from huggingface_hub import constants

    as_shards(save(hub.root / "somebody" / "m"))
    GPT2.from_pretrained("somebody/m")
    (missing,) = [
        file for file in (tmp_path / "cache").rglob("*") if fnmatch.fnmatch(file.name, "model-00002-of-*.safetensors")
    ]
    missing.unlink()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert_one_line_error("somebody/m", "model-00002-of-00002.safetensors")


def test_the_mirror_is_searched_before_the_hub(hub, tmp_path):
    shutil.copytree(save(hub.root / "somebody" / "m"), tmp_path / "mirror" / "somebody" / "m")
    assert (
        resolve.find_checkpoint("somebody/m", mirror=tmp_path / "mirror").folder
        == tmp_path / "mirror" / "somebody" / "m"
    )
    assert fetched(hub) == []


def test_a_changed_model_card_is_not_damage(tmp_path):
    folder = save(tmp_path / "m")
    (folder / "README.md").write_text("as exported")
    files.write_digests(folder)
    (folder / "README.md").write_text("edited")
    assert resolve.find_checkpoint(folder) == resolve.ResolvedCheckpoint(folder)
    (folder / "config.json").write_text("{}")
    with pytest.raises(GPT2LabError, match="config.json does not match its sha256"):
        resolve.find_checkpoint(folder)
