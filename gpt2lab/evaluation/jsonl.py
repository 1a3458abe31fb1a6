"""Reading other people's JSONL: one object a line, and complaints that name the line."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from gpt2lab.errors import GPT2LabError


@dataclass(frozen=True)
class Line:
    """One object, and where it stands. Every method raises GPT2LabError if the field is not what it should be."""

    path: Path
    number: int
    values: dict[str, Any]

    def text(self, field: str, *, empty: bool = False) -> str:
        """A string, not blank unless `empty` allows it."""
        value = self._get(field)
        if not isinstance(value, str) or not (value.strip() or empty):
            self.refuse(f"{field} must be text, not {value!r}")
        return value

    def texts(self, field: str, *, count: int | None = None) -> tuple[str, ...]:
        """A list of strings, none of them blank: `count` of them, or two or more."""
        value = self._get(field)
        if not isinstance(value, list) or (len(value) < 2 if count is None else len(value) != count):
            self.refuse(f"{field} must be a list of {count or 'two or more'} texts")
        for n, text in enumerate(value):
            if not isinstance(text, str):
                self.refuse(f"{field}[{n}] must be text, not {text!r}")
            if not text.strip():
                self.refuse(f"{field}[{n}] is empty")
        return tuple(value)

    def index(self, field: str, count: int) -> int:
        """A whole number from 0 to `count` - 1, which may be written as text."""
        value = self._get(field)
        if isinstance(value, str) and value.isdecimal():
            value = int(value)
        if type(value) is not int:
            self.refuse(f"{field} must be a number from 0 to {count - 1}, not {value!r}")
        if not 0 <= value < count:
            self.refuse(f"{field} is {value}, out of range: 0 to {count - 1}")
        return value

    def refuse(self, problem: str) -> NoReturn:
        """Raise GPT2LabError about this line."""
        raise GPT2LabError(f"{self.path}: line {self.number}: {problem}; mend the line or fetch the file again")

    def _get(self, field: str) -> Any:
        if field not in self.values:
            self.refuse(f"the field {field} is missing")
        return self.values[field]


def read(path: Path) -> Iterator[Line]:
    """The lines of a file; blank ones are passed over.

    Raises:
        GPT2LabError: the file cannot be read or holds nothing, or a line is not a JSON object.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise GPT2LabError(f"{path}: cannot read it: {error.strerror}") from None
    if not content.strip():
        raise GPT2LabError(f"{path} is empty; fetch it again")
    for number, line in enumerate(content.split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
        except ValueError as error:  # not JSON, or not UTF-8
            raise GPT2LabError(f"{path}: line {number}: not JSON: {error}; fetch the file again") from None
        if not isinstance(values, dict):
            raise GPT2LabError(f"{path}: line {number}: expected an object, found {type(values).__name__}")
        yield Line(path, number, values)
