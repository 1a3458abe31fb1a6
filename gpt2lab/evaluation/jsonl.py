"""Reads JSON Lines files, one object per line, as pydantic models. Errors name the file, the line and the field."""

from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, ValidationError, ValidationInfo

from gpt2lab.errors import GPT2LabError

RecordT = TypeVar("RecordT", bound=BaseModel)


def _check_not_blank(text: str) -> str:
    if not text.strip():
        raise ValueError("must not be empty")
    return text


def _check_not_bool(value: object) -> object:
    if isinstance(value, bool):  # an int to Python and to pydantic
        raise ValueError("must be a whole number")
    return value


def _check_gold(gold: int, info: ValidationInfo) -> int:
    choices = info.data.get("choices") or info.data.get("context_options") or ()
    if gold >= len(choices):
        raise ValueError(f"is {gold}, out of range: 0 to {len(choices) - 1}")
    return gold


Text = Annotated[str, AfterValidator(_check_not_blank)]
Index = Annotated[int, BeforeValidator(_check_not_bool), Field(ge=0)]  # may be written as a string
Gold = Annotated[Index, AfterValidator(_check_gold)]  # of the fields `choices` or `context_options` before it


def read(path: Path, record_type: type[RecordT]) -> list[RecordT]:
    """Read a file. Blank lines are skipped.

    Args:
        path: the file, in UTF-8.
        record_type: what each line must be. Fields that it does not declare are ignored.

    Returns:
        The records in the order of the lines.

    Raises:
        GPT2LabError: the file cannot be read, is empty, or has a line that is not such a record.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise GPT2LabError(f"{path}: cannot read it: {error.strerror}") from None
    return parse(content, record_type, path)


def parse(content: bytes, record_type: type[RecordT], path: object) -> list[RecordT]:
    """Parse the content of a file, as `read` does.

    Args:
        content: of the file.
        record_type: what each line must be.
        path: where the content is from, for messages.

    Returns:
        The records in the order of the lines.

    Raises:
        GPT2LabError: it is empty, or has a line that is not such a record.
    """
    records = []
    for number, line in enumerate(content.split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            records.append(record_type.model_validate_json(line))
        except ValidationError as error:
            first = error.errors()[0]
            field = "".join(f"{part}: " for part in first["loc"])
            problem = first["msg"].removeprefix("Value error, ")
            raise GPT2LabError(
                f"{path}: line {number}: {field}{problem}; correct it or download the file again"
            ) from None
    if not records:
        raise GPT2LabError(f"{path} is empty; download it again")
    return records
