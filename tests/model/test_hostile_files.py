"""Hostile files: no code runs, and reading ends with one line, soon and in little memory."""

import argparse
import collections
import contextlib
import copyreg
import functools
import io
import os
import pickle
import struct
import subprocess
import sys
import time
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from gpt2lab import GPT2, GPT2Config, cli
from gpt2lab.errors import GPT2LabError
from gpt2lab.model import huggingface, pickle_reader
from tests.model import foreign_files as files
from tests.model.helpers import TINY, random_model, same_weights

TOUCH = "open('canary', 'w')"


class Call:
    """Pickled as a call of a function with arguments."""

    def __init__(self, function, *arguments):
        self.reduced = (function, arguments)

    def __reduce__(self):
        return self.reduced


class Stored:
    """Pickled as a reference to a storage of torch."""

    def __init__(self, numel=16, key="0", kind=torch.FloatStorage, word="storage", more=()):
        self.id = (word, kind, key, "cpu", numel, *more)


def dumps(value, protocol=2) -> bytes:
    stream = io.BytesIO()
    pickler = pickle.Pickler(stream, protocol)
    pickler.persistent_id = lambda value: value.id if isinstance(value, Stored) else None
    pickler.dump(value)
    return stream.getvalue()


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


SYSTEM, COMMAND = b"cposix\nsystem\n", text("touch canary")
torch.save(Call(eval, TOUCH), torch_bytes := io.BytesIO())

# --- Pickles that run code when Python's own reader reads them.

CODE = {
    "os.system": b"\x80\x02" + SYSTEM + COMMAND + b"\x85R.",
    "os.system, protocol 4": b"\x80\x04\x8c\x05posix\x8c\x06system\x93" + COMMAND + b"\x85R.",
    "os.system by INST": b"(" + COMMAND + b"iposix\nsystem\n.",
    "os.system by OBJ": b"(" + SYSTEM + COMMAND + b"o.",
    "os.system by the memo": b"\x80\x02" + SYSTEM + b"q\x00" + COMMAND + b"\x85q\x01h\x00h\x01R.",
    "os.system by EXT1": b"\x80\x02\x82\x07" + COMMAND + b"\x85R.",
    "os.system by EXT4": b"\x80\x02\x84\x07\x00\x00\x00" + COMMAND + b"\x85R.",
    "os.system as __setstate__": b"\x80\x02ctypes\nSimpleNamespace\n)\x81}"
    + (text("__setstate__") + SYSTEM + b"sb" + COMMAND + b"b."),
    "a chain of getattr": b"\x80\x02cbuiltins\ngetattr\n(cbuiltins\n__import__\n"
    + (text("os") + b"\x85R" + text("system") + b"tR" + COMMAND + b"\x85R."),
    "eval": dumps(Call(eval, TOUCH)),
    "exec, deep inside": dumps({"model": [{"a": (1, Call(exec, TOUCH))}]}),
    "pickle.loads": dumps(Call(pickle.loads, dumps(Call(eval, TOUCH)))),
    "torch.load": dumps(Call(torch.storage._load_from_bytes, torch_bytes.getvalue())),
    "torch's tensors of other types": dumps(Call(torch._tensor._rebuild_from_type_v2, eval, list, (TOUCH,), {})),
    "a call by map": dumps(Call(list, Call(map, eval, (TOUCH,)))),
    "an argument of a call that is allowed": dumps(Call(collections.OrderedDict, Call(eval, TOUCH))),
}
SYSTEM_INFO = dumps({"protocol_version": 1001, "little_endian": True, "type_sizes": {}})
LEGACY = (dumps(0x1950A86A20F9469CFC6C), dumps(1001), SYSTEM_INFO, dumps({}), dumps([]))


def write_old_form(n: int, path: Path, data: bytes) -> None:
    """The form before torch 1.6 with its n-th pickle replaced."""
    path.write_bytes(b"".join((*LEGACY[:n], data, *LEGACY[n + 1 :])))


FORMS: dict[str, Callable[[Path, bytes], object]] = {
    "zip": files.write_zip,
    "bare": lambda path, data: path.write_bytes(data),
    **{f"old form, pickle {n}": functools.partial(write_old_form, n) for n in range(1, 5)},
}


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def _extension():
    copyreg.add_extension("posix", "system", 7)
    yield
    copyreg.remove_extension("posix", "system", 7)


def assert_refused_in_one_line(capsys, path="x.pt") -> str:
    """As the command does: status 2, one printable line, nothing written, soon."""
    began = time.monotonic()
    assert cli.main(["import", path, "--out", "out"]) == 2
    assert time.monotonic() - began < 30  # a second on an idle machine
    error = capsys.readouterr().err.removesuffix("\n")
    assert error.startswith(f"gpt2lab: {path}: ")
    assert error.isprintable()
    assert len(error) < 500
    assert not Path("canary").exists()
    assert not Path("out").exists()
    return error


@pytest.mark.usefixtures("_extension")
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("case", CODE)
def test_code_is_not_run(capsys, case, form):
    FORMS[form](Path("x.pt"), CODE[case])
    assert_refused_in_one_line(capsys)


@pytest.mark.usefixtures("_extension")
@pytest.mark.parametrize("case", CODE)
def test_the_code_of_these_pickles_works(case):
    with contextlib.suppress(Exception):
        pickle.loads(CODE[case])
    assert Path("canary").exists()


# --- Files that ask for too much, or for what lies outside of them.


def zipped(data: bytes, entries=None, **options):
    return lambda path: files.write_zip(path, data, entries, **options)


REBUILD = torch._utils._rebuild_tensor_v2


def with_tensor(size=(16,), stride=(1,), offset=0, function=REBUILD, name="transformer.ln_f.bias", **storage):
    """A checkpoint where one tensor is replaced by a view of a storage of 16 floats."""
    model, state, entries = random_model(TINY), {}, {"data/0": bytes(64), "../../secret": bytes(64)}
    for n, (key, tensor) in enumerate(model.state_dict().items(), start=1):
        stored = Stored(tensor.numel(), str(n))
        state[key] = Call(REBUILD, stored, 0, tuple(tensor.shape), tensor.stride(), False, {})
        entries[f"data/{n}"] = tensor.numpy().tobytes()
    state[name] = Call(function, Stored(**storage), offset, size, stride, False, {})
    return zipped(dumps({"model": state, "config": files.fields(model)}), entries)


def with_value(value):
    """A right checkpoint but for a value of its config."""
    model = random_model(TINY)
    return lambda path: torch.save({"model": model.state_dict(), "config": {"n_head": value}}, path)


def in_config(value: bytes):
    """A checkpoint with raw pickle instructions as the number of heads."""

    def write(path):
        with_value("VALUE")(path)
        data = text("VALUE")
        files.resave(path, lambda entries: {k: v.replace(data, value) for k, v in entries.items()})

    return write


def changed(change):
    """A right checkpoint whose entries are changed."""

    def write(path):
        files.save_build_nanogpt(path, random_model(TINY))
        change(path)

    return write


def write_twice(path: Path) -> None:
    with zipfile.ZipFile(path, "a") as archive, warnings.catch_warnings(action="ignore"):
        archive.writestr("x/data.pkl", b"N.")
        archive.writestr("x/data.pkl", CODE["eval"])


def write_many_names(path: Path) -> None:
    with zipfile.ZipFile(path, "a") as archive:
        for n in range(80):
            archive.writestr(f"{n}/" + 60_000 * "x", b"")


def claim_more_bytes(path: Path) -> None:
    data = bytearray(path.read_bytes())
    start = data.rindex(b"PK\x01\x02")
    data[start + 20 : start + 28] = struct.pack("<II", 2**31, 2**31)
    path.write_bytes(data)


def repeat_one_number(path: Path) -> None:
    config = GPT2Config(n_layer=1, n_head=1, n_embd=1024, vocab_size=65536)
    state = {name: torch.zeros(1).expand(shape) for name, shape in huggingface.shapes(config).items()}
    torch.save({"model": state, "config": {"n_head": 1}}, path)


def repeat_one_layer(path: Path) -> None:
    model = random_model(TINY)
    state = model.state_dict()
    layer = [(name[15:], tensor) for name, tensor in state.items() if name.startswith("transformer.h.0.")]
    state |= {f"transformer.h.{n}{name}": tensor for n in range(500) for name, tensor in layer}
    torch.save({"model": state, "config": {"n_head": 2}}, path)


LAUGHS = b")" + b"q\x63h\x63\x86" * 200  # a pair of a pair of ..., each twice the same: 2**200 values
DEEP = b")" + b"\x85" * 500_000
COLLISIONS = b"".join(b"\x8a\x0a" + (n * (2**61 - 1)).to_bytes(10, "little") + b"Ns" for n in range(1, 200_000))
HUGE = b"\x8b" + struct.pack("<i", 2**20) + b"\x7f" * 2**20  # an integer of a million bytes
TWINS = text("x" * 7_900_000) + b"q\x00" + text("x" * 7_900_000) + b"q\x01"  # equal texts, each an object of its own
STORAGES = b"".join(b"(" + text("storage") + b"ctorch\nFloatStorage\nh" + n + b"NK\x04tQ" for n in (b"\x00", b"\x01"))
MANY_ITEMS = b"".join(text(f"{n}") + b"Ns" for n in range(50_000))

LIMITS = {
    "an offset outside": with_tensor((4, 4), (4, 1), offset=1),
    "a negative offset": with_tensor((4, 4), (4, 1), offset=-4),
    "a stride outside": with_tensor((4, 4), (2**40, 1)),
    "a negative stride": with_tensor((4, 4), (-4, 1)),
    "a negative size": with_tensor((-4, -4), (4, 1)),
    "sizes without strides": with_tensor((4, 4, 0), (4,)),
    "a storage without an entry": with_tensor(key="missing"),
    "a huge tensor": with_tensor((65536, 16), (0, 1), name="transformer.wte.weight"),
    "a tensor beyond all memory": with_tensor((2**40, 2**20), (0, 0), name="transformer.wte.weight"),
    "an old call, outside": with_tensor((4, 4), (4, 1), 1, torch._utils._rebuild_tensor),
    "a storage larger than its entry": with_tensor(numel=2**40),
    "a negative storage": with_tensor(numel=-16),
    "a storage outside of the folder": with_tensor(key="../../secret"),
    "a storage of the system": with_tensor(key="/etc/passwd"),
    "a storage with a number as key": with_tensor(key=0),
    "a storage of another class": with_tensor(kind=os.system),
    "an unknown storage": with_tensor(kind=torch.ComplexFloatStorage),
    "a reference to something else": with_tensor(word="module"),
    "a reference without parts": zipped(b"\x80\x02" + text("storage") + b"Q."),
    "a reference as text": zipped(b"Pstorage\n."),
    "tensors that repeat one number": repeat_one_number,
    "many layers of one storage": repeat_one_layer,
    "laughs as content": zipped(b"\x80\x02" + LAUGHS + b"."),
    "laughs as a key": zipped(b"\x80\x02}" + LAUGHS + b"Ns."),
    "laughs as heads": in_config(LAUGHS),
    "laughs as a call": zipped(b"\x80\x02" + LAUGHS + b")R."),
    "laughs as keys of storages": lambda path: FORMS["old form, pickle 4"](path, b"\x80\x02]" + LAUGHS + b"a."),
    "deep": zipped(b"\x80\x02" + DEEP + b"."),
    "deep as a key": zipped(b"\x80\x02}" + DEEP + b"Ns."),
    "deep as heads": in_config(DEEP),
    "deep marks": zipped(b"\x80\x02" + b"(" * 900_000 + b"t" * 900_000 + b"."),
    "keys with equal hashes": zipped(b"\x80\x02}" + COLLISIONS + b"."),
    "long keys that are equal": zipped(b"\x80\x02" + TWINS + b"}" + b"h\x00Nsh\x01Ns" * 80_000 + b"."),
    "long keys of storages": zipped(b"\x80\x02" + TWINS + STORAGES * 25_000 + b"."),
    "long keys in the old form": lambda path: FORMS["old form, pickle 4"](
        path, b"\x80\x02" + TWINS + b"](" + b"h\x00h\x01" * 120_000 + b"e."
    ),
    "attributes again and again": zipped(b"\x80\x02}" + MANY_ITEMS + b"q\x00cx\ny\n)\x81" + b"h\x00b" * 200_000 + b"."),
    "a call with many arguments": zipped(b"\x80\x02ccollections\nOrderedDict\n(" + b"N" * 100_000 + b"tR."),
    "a huge integer as heads": in_config(HUGE),
    "a huge integer as size": zipped(
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(("
        + text("storage")
        + b"ctorch\nFloatStorage\n"
        + (text("0") + text("cpu") + HUGE + b"tQK\x00" + HUGE + b"\x85" + HUGE + b"\x85tR.")
    ),
    "too many instructions": zipped(b"\x80\x02" + b"]" * 2**21 + b"."),
    "a long pickle": zipped(b"\x80\x02" + text("x" * 2**24) + b"."),
    "a text longer than the file": zipped(b"\x80\x02X\xff\xff\xff\x7fabc."),
    "a zip bomb as pickle": zipped(text("x" * 2**23) + b".", compression=zipfile.ZIP_DEFLATED),
    "a zip bomb as tensor": lambda path: files.write_zip(
        path, b"N.", {"data/0": bytes(2**25)}, compression=zipfile.ZIP_DEFLATED
    ),
    "two entries of a name": changed(write_twice),
    "a long list of entries": changed(write_many_names),
    "entries longer than the file": changed(claim_more_bytes),
    "a folder above": zipped(b"N.", folder=".."),
    "an absolute folder": zipped(b"N.", folder="/etc"),
    "big-endian": zipped(b"N.", {"byteorder": b"big"}),
    "NEWOBJ_EX": zipped(b"\x80\x04" + SYSTEM + b")}\x92."),
    "attributes of a function": zipped(b"\x80\x02" + SYSTEM + b"}" + text("__code__") + b"Nsb."),
    "items of a list": zipped(b"\x80\x02]NNs."),
    "append to a dict": zipped(b"\x80\x02}Na."),
    "a value that is not in the memo": zipped(b"\x80\x02h\x05."),
    "nothing on the stack": zipped(b"\x80\x02R."),
    "a protocol of the future": zipped(b"\x80\x06N."),
    "no end": zipped(b"\x80\x02N"),
    "a sequence of the terminal": lambda path: torch.save({"\x1b[2J\n" + "x" * 1000: torch.ones(1)}, path),
    "a call with a sequence of the terminal": zipped(b"\x80\x02" + text("\x1b[2J") + text("x" * 9999) + b"\x93)R."),
}


# So that these are not refused for another reason.
REASONS = {
    "an offset outside": "outside of its storage",
    "a stride outside": "outside of its storage",
    "an old call, outside": "outside of its storage",
    "a zip bomb as pickle": "compressed",
    "a zip bomb as tensor": "compressed",
    "a long list of entries": "damaged or incomplete zip",
    "too many instructions": "instructions",
    "keys with equal hashes": "instructions",
    "a call with many arguments": "calls",
    "laughs as heads": "n_head",
    "deep as heads": "n_head",
    "a huge tensor": "larger than the file",
    "a tensor beyond all memory": "n_embd",
    "a storage larger than its entry": "another number of them",
    "a storage outside of the folder": "lacks the bytes",
    "a storage of the system": "lacks the bytes",
    "a storage without an entry": "lacks the bytes",
    "tensors that repeat one number": "larger than the file",
    "many layers of one storage": "larger than the file",
}


@pytest.mark.parametrize("case", LIMITS)
def test_a_file_that_asks_for_too_much(capsys, case):
    LIMITS[case](Path("x.pt"))
    assert REASONS.get(case, "") in assert_refused_in_one_line(capsys)


def test_the_tensor_of_these_files_is_right_without_a_change():
    with_tensor()(Path("x.pt"))
    assert GPT2.from_pretrained("x.pt").transformer.ln_f.bias.tolist() == [0] * 16


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "old form"])
def test_a_truncated_file(capsys, legacy):
    files.save_nanogpt(Path("whole.pt"), random_model(TINY), legacy=legacy)
    data = Path("whole.pt").read_bytes()
    for size in (1, 10, 100, len(data) // 2, len(data) - 100, len(data) - 1):
        Path("x.pt").write_bytes(data[:size])
        assert_refused_in_one_line(capsys)


def test_a_changed_bit_is_found(capsys):
    files.save_build_nanogpt(Path("x.pt"), random_model(TINY))
    data = bytearray(Path("x.pt").read_bytes())
    with zipfile.ZipFile("x.pt") as archive:
        entry = next(entry for entry in archive.infolist() if entry.filename.endswith("data/3"))
        data[entry.header_offset + 200] ^= 1
    Path("x.pt").write_bytes(data)
    assert "checksum" in assert_refused_in_one_line(capsys)


def test_a_file_without_checksums_is_read():
    model = random_model(TINY)
    files.save_build_nanogpt(Path("x.pt"), model)
    data = bytearray(Path("x.pt").read_bytes())
    start = data.find(b"PK\x01\x02")
    while start >= 0:  # as torch writes them after set_crc32_options(False)
        data[start + 16 : start + 20] = bytes(4)
        start = data.find(b"PK\x01\x02", start + 1)
    Path("x.pt").write_bytes(data)
    assert same_weights(model, GPT2.from_pretrained("x.pt"))


def test_long_keys_are_not_compared():
    long = "x" * 2000
    assert pickle_reader.read(io.BytesIO(dumps({long: 1, "a": 2})))[0] == {"a": 2}
    with pytest.raises(pickle_reader.PickleError, match="describes the storage of a tensor wrongly"):
        pickle_reader.read(io.BytesIO(dumps(Stored(key=long))))


@pytest.mark.slow
def test_memory_is_bounded():
    """All of these files together, in a process of their own; torch.empty is not seen by tracemalloc."""
    for n, write in enumerate(LIMITS.values()):
        write(Path(f"{n}.pt"))
    code = """
import resource, sys
from pathlib import Path
from gpt2lab.errors import GPT2LabError
from gpt2lab.model import foreign
used = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // (1024 if sys.platform == "linux" else 1024**2)
before, refused = used(), 0
for path in Path().glob("*.pt"):
    try:
        foreign.read(path)
    except GPT2LabError:
        refused += 1
print(refused, used() - before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    refused, mebibytes = map(int, done.stdout.split())
    assert refused == len(LIMITS)
    assert mebibytes < 400


# --- What is only unusual is read.


class Unknown:
    """An object of a class that the reader does not know."""

    def __init__(self):
        self.value = {"a": [1, 2.5, "x", None, True, b"bytes", -(2**70)]}


UNUSUAL = {
    "an object": Unknown(),
    "a namespace": argparse.Namespace(lr=1e-3, betas=(0.9, 0.95)),
    "a number of NumPy": np.float64(3.5),
    "an array of NumPy": np.arange(3),
    "a path": Path("out"),
    "a set": {1, 2},
    "a default dict": collections.defaultdict(list, a=[1]),
    "a device": torch.device("cuda"),
    "a size": torch.Size([1, 2]),
    "a dtype": torch.bfloat16,
    "a class": Unknown,
    "a complex number": 1j,
    "text": "日本 \ud800",
    "keys that are not text": {1: 2, (1, 2): 3, None: 4},
    "a tensor that is not needed": torch.arange(3),
    "a parameter": torch.nn.Parameter(torch.ones(2)),
}


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("case", UNUSUAL)
def test_other_values_are_read_and_not_used(case, protocol):
    model = random_model(TINY)
    value = UNUSUAL[case]
    content = {"model": model.state_dict(), "extra": value, "config": {**files.fields(model), "x": value}}
    torch.save(content, "x.pt", pickle_protocol=protocol)
    assert same_weights(model, GPT2.from_pretrained("x.pt"))


def test_an_object_becomes_a_record_of_its_attributes():
    value, _ = pickle_reader.read(io.BytesIO(dumps(argparse.Namespace(a=1, b=[2]))))
    assert isinstance(value, pickle_reader.Record)
    assert (str(value.type), value.values) == ("argparse.Namespace", {"a": 1, "b": [2]})


def test_random_damage_is_an_error_or_harmless():
    files.save_nanogpt(Path("whole.pt"), random_model(TINY))
    with zipfile.ZipFile("whole.pt") as archive:
        data = archive.read("whole/data.pkl")
    random = np.random.default_rng(0)
    for _ in range(300):
        damaged = bytearray(data)
        for position in random.integers(0, len(data), size=3):
            damaged[position] = random.integers(0, 256)
        with contextlib.suppress(pickle_reader.PickleError):
            pickle_reader.read(io.BytesIO(bytes(damaged)))
        files.write_zip(Path("x.pt"), bytes(damaged))
        with contextlib.suppress(GPT2LabError):
            GPT2.from_pretrained("x.pt")
    data = Path("whole.pt").read_bytes()
    for _ in range(300):  # of the list of entries, at the end
        damaged = bytearray(data)
        for position in random.integers(len(data) - 3000, len(data), size=3):
            damaged[position] = random.integers(0, 256)
        Path("x.pt").write_bytes(damaged)
        with contextlib.suppress(GPT2LabError):
            GPT2.from_pretrained("x.pt")
