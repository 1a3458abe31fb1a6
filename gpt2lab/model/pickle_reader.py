"""Read a pickle without running any of it: plain containers, descriptions of tensors, and inert records.

A pickle is a program for a stack machine. Python's machine imports modules and calls functions, so a file can run any
code. This one can do neither. It knows only the instructions that `torch.save` writes:

    GLOBAL, a class or function  ─▶ Name, two words of text
    NEWOBJ and BUILD, an object  ─▶ Record: the object's attributes by name
    REDUCE, a call               ─▶ the result of an entry of `_CALLS`; any other call refuses the file
    BINPERSID, a storage         ─▶ Storage: where the numbers of tensors are
    anything else                ─▶ numbers, text, lists, dicts, or the file is refused

`pickletools` of the standard library splits the bytes into instructions. Each takes constant time and memory, also in a
file that was made to be expensive: keys of dicts are short text (others are left out), which alone has hashes that a
file cannot choose and is compared in constant time; nothing is copied; numbers that count something are limited.
"""

import io
import math
import pickletools
from collections.abc import Callable
from typing import Any, NamedTuple, TypeGuard

import torch

MAX_SIZE = 2**24  # bytes of a pickle; nanoGPT's checkpoint of GPT-2 XL with its optimizer has 2**18
_MAX_INSTRUCTIONS = 2**19  # the same checkpoint has 2**17; a second of work
_MAX_PROTOCOL = 5
_MAX_DIMENSIONS = 8
_MAX_ARGUMENTS = 16  # of a call
_MAX_NUMBER = 2**48  # of elements
_MAX_KEY = 1024  # characters; a dict compares equal keys character by character

_STORAGE_DTYPES = {
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "DoubleStorage": torch.float64,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
_PYTHON_2_MODULES = {"__builtin__": "builtins", "copy_reg": "copyreg"}  # also written by Python 3 in protocol 2


class PickleError(ValueError):
    """The pickle is damaged, or holds what is not data. The message completes "FILE: "."""


class Name(NamedTuple):
    """The name of a class or function. It was not imported."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


class Record:
    """An object of a class that was not imported: the class's name, and attributes or items by name."""

    __slots__ = ("type", "values")

    def __init__(self, type: Name):
        self.type = type
        self.values: dict[str, Any] = {}


class Storage(NamedTuple):
    """A block of `numel` numbers of one dtype. `key` is its name in the file."""

    key: str
    dtype: torch.dtype
    numel: int


class StoredView(NamedTuple):
    """A tensor that has not been read: a view of a storage, all of it inside."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def dtype(self) -> torch.dtype:
        """Of the elements."""
        return self.storage.dtype

    @property
    def nbytes(self) -> int:
        """Size of the tensor that this describes."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def span(self) -> int:
        """Number of elements of the storage from the first to the last one of the tensor."""
        if 0 in self.shape:
            return 0
        return 1 + sum((size - 1) * step for size, step in zip(self.shape, self.stride, strict=True))


def show(value: object) -> str:
    """A value of a file for a message: printable, and not long.

    Args:
        value: any; containers can be so large or deep that printing them would not end.

    Returns:
        Text, a name or a small number in at most 60 characters, else the type.
    """
    is_small = isinstance(value, str | Name | bool | float | None) or (isinstance(value, int) and abs(value) < 2**63)
    text = str(value) if is_small else f"({type(value).__name__})"
    shown = "".join(character if character.isprintable() else "?" for character in text[:61])
    return shown if len(shown) <= 60 else f"{shown[:57]}..."


def read(stream: io.BytesIO) -> tuple[Any, dict[str, Storage]]:
    """Read one pickle.

    Args:
        stream: at its beginning; then behind its end.

    Returns:
        What was pickled: None, bool, int, float, str, bytes, list, tuple, dict, Name, Record, Storage or StoredView,
        nested. And the storages that it refers to, by key.

    Raises:
        PickleError: the pickle is damaged, too long, or calls something.
    """
    machine = _Machine()
    try:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
            if count >= _MAX_INSTRUCTIONS:
                raise PickleError(f"holds more than {_MAX_INSTRUCTIONS:,} instructions, which no model needs")
            if opcode.name == "STOP":
                return machine.pop(), machine.storages
            machine.execute(opcode.name, argument)
        raise ValueError  # genops has raised one before
    except PickleError:
        raise
    except Exception as error:  # damaged bytes can be wrong in nearly any way, and nothing has been run
        reason = type(error).__name__
        raise PickleError(f"is damaged or incomplete, or was not written by torch.save ({reason})") from None


class _Machine:
    """The stack, and the values that the file refers to by number."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.outer: list[list[Any]] = []  # the stacks below each mark
        self.memo: dict[int, Any] = {}
        self.storages: dict[str, Storage] = {}

    def pop(self) -> Any:
        return self.stack.pop()

    def pop_to_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.outer.pop()
        return items

    def execute(self, name: str, argument: Any) -> None:
        if name in _ARGUMENTS:
            self.stack.append(argument)
        elif name in _CONSTANTS:
            self.stack.append(_CONSTANTS[name]())
        elif name in _INSTRUCTIONS:
            _INSTRUCTIONS[name](self, argument)
        else:
            raise PickleError(f"holds the pickle instruction {show(name)}, which torch.save does not write")

    def check_protocol(self, version: int) -> None:
        if version > _MAX_PROTOCOL:
            raise PickleError(f"is a pickle of protocol {version}, and {_MAX_PROTOCOL} is the newest")

    def mark(self, _: None) -> None:
        self.outer.append(self.stack)
        self.stack = []

    def remember(self, index: int | None) -> None:
        self.memo[len(self.memo) if index is None else index] = self.stack[-1]

    def recall(self, index: int) -> None:
        self.stack.append(self.memo[index])

    def make_tuple(self, _: None) -> None:
        items = self.pop_to_mark()  # which replaces self.stack
        self.stack.append(tuple(items))

    def append(self, items: list[Any]) -> None:
        if isinstance(self.stack[-1], list):
            self.stack[-1].extend(items)
        elif not isinstance(self.stack[-1], Record):  # an object that is a list: its items are not needed
            raise PickleError("appends to something that is not a list")

    def set_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, Record):
            target = target.values
        if type(target) is not dict:
            raise PickleError("stores items in something that is not a dict")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if _is_key(key):
                target[key] = value

    def make_name(self, module: object, name: object) -> None:
        if not isinstance(module, str) or not isinstance(name, str):
            raise PickleError("names a class by something that is not text")
        self.stack.append(Name(_PYTHON_2_MODULES.get(module, module), name))

    def make_record(self, _: None) -> None:
        _arguments, type_ = self.pop(), self.pop()
        if not isinstance(type_, Name):
            raise PickleError("makes an object of something that is not a class")
        self.stack.append(Record(type_))

    def set_attributes(self, _: None) -> None:
        """Only a Record keeps them: a state dict has `_metadata`, which is not needed."""
        state, target = self.pop(), self.stack[-1]
        if type(target) is dict:
            return
        if not isinstance(target, Record):
            raise PickleError("sets the attributes of something that has none")
        for part in state[:2] if isinstance(state, tuple) else (state,):  # (attributes, slots)
            if type(part) is dict:
                target.values = part

    def call(self, _: None) -> None:
        arguments, function = self.pop(), self.pop()
        if not isinstance(function, Name) or not isinstance(arguments, tuple) or len(arguments) > _MAX_ARGUMENTS:
            raise PickleError("calls something that is not the name of a function; none of its code was run")
        if str(function) in _INERT_CALLS:
            self.stack.append(Record(function))
        elif str(function) in _CALLS:
            self.stack.append(_CALLS[str(function)](*arguments))
        else:
            raise PickleError(
                f"calls {show(function)}, which could be code; none of it was run. If you trust the file, load it with "
                "the program that wrote it, and save model.state_dict() alone"
            )

    def make_storage(self, _: None) -> None:
        kind, type_, key, _place, numel, *view = self.pop()[:_MAX_ARGUMENTS]
        if kind != "storage" or not isinstance(type_, Name) or type_.module not in ("torch", "torch.storage"):
            raise PickleError("refers to something outside of it that is not the storage of a tensor")
        if type_.name not in _STORAGE_DTYPES:
            raise PickleError(f"holds a {show(type_)}; only {', '.join(_STORAGE_DTYPES)} can be read")
        if view not in ([], [None]):
            raise PickleError("was written by a torch that is too old; load it there and save it with a newer one")
        if not _is_key(key) or not _is_count(numel):
            raise PickleError("describes the storage of a tensor wrongly")
        self.storages[key] = Storage(key, _STORAGE_DTYPES[type_.name], numel)
        self.stack.append(self.storages[key])


def _is_key(value: object) -> TypeGuard[str]:
    return isinstance(value, str) and len(value) <= _MAX_KEY


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < _MAX_NUMBER


def _make_view(storage: object, offset: object, shape: object, stride: object, *_: object) -> StoredView:
    if not isinstance(storage, Storage) or not isinstance(shape, tuple) or not isinstance(stride, tuple):
        raise PickleError("describes a tensor wrongly")
    if len(shape) != len(stride) or len(shape) > _MAX_DIMENSIONS or not all(map(_is_count, (offset, *shape, *stride))):
        raise PickleError("describes a tensor wrongly")
    view = StoredView(storage, offset, shape, stride)  # type: ignore[arg-type]
    if view.offset + view.span > storage.numel:
        raise PickleError("holds a tensor that lies outside of its storage")
    return view


def _take_parameter(view: object, *_: object) -> StoredView:
    if not isinstance(view, StoredView):
        raise PickleError("describes a parameter wrongly")
    return view


def _make_dict(*_: object) -> dict[Any, Any]:
    return {}  # the items follow


_ARGUMENTS = {
    *("BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT"),
    *("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINSTRING", "SHORT_BINSTRING"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
}
_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_TUPLE": tuple,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "EMPTY_SET": lambda: Record(Name("builtins", "set")),
}
_INSTRUCTIONS: dict[str, Callable[[_Machine, Any], None]] = {
    "PROTO": _Machine.check_protocol,
    "FRAME": lambda *_: None,
    "MARK": _Machine.mark,
    "BINPUT": _Machine.remember,
    "LONG_BINPUT": _Machine.remember,
    "MEMOIZE": _Machine.remember,
    "BINGET": _Machine.recall,
    "LONG_BINGET": _Machine.recall,
    "TUPLE": _Machine.make_tuple,
    "TUPLE1": lambda machine, _: machine.stack.append((machine.pop(),)),
    "TUPLE2": lambda machine, _: machine.stack.append((machine.pop(), machine.pop())[::-1]),
    "TUPLE3": lambda machine, _: machine.stack.append((machine.pop(), machine.pop(), machine.pop())[::-1]),
    "APPEND": lambda machine, _: machine.append([machine.pop()]),
    "APPENDS": lambda machine, _: machine.append(machine.pop_to_mark()),
    "ADDITEMS": lambda machine, _: machine.append(machine.pop_to_mark()),
    "SETITEM": lambda machine, _: machine.set_items([machine.pop(), machine.pop()][::-1]),
    "SETITEMS": lambda machine, _: machine.set_items(machine.pop_to_mark()),
    "GLOBAL": lambda machine, name: machine.make_name(*name.split(" ", 1)),
    "STACK_GLOBAL": lambda machine, _: machine.make_name(*(machine.pop(), machine.pop())[::-1]),
    "NEWOBJ": _Machine.make_record,
    "BUILD": _Machine.set_attributes,
    "REDUCE": _Machine.call,
    "BINPERSID": _Machine.make_storage,
}
# Calls that only describe a tensor or begin a dict. They are functions of this module; torch's are never called.
_CALLS: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor": _make_view,
    "torch._utils._rebuild_tensor_v2": _make_view,
    "torch._utils._rebuild_parameter": _take_parameter,
    "collections.OrderedDict": _make_dict,
    "collections.defaultdict": _make_dict,
    "builtins.dict": _make_dict,
}
# Calls that make a value without effects elsewhere. The result is not needed, so it is an empty Record.
_INERT_CALLS = {
    *("torch.device", "torch.Size", "builtins.set", "builtins.frozenset", "builtins.complex", "_codecs.encode"),
    *("numpy.dtype", "numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar"),
    *("numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct"),
    *("numpy.core.numeric._frombuffer", "numpy._core.numeric._frombuffer"),
    *("pathlib.Path", "pathlib.PosixPath", "pathlib.WindowsPath", "pathlib.PurePosixPath", "pathlib.PureWindowsPath"),
    *("datetime.datetime", "datetime.date", "datetime.timedelta"),
}
