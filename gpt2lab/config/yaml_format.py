"""Reading and writing the YAML of settings."""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gpt2lab.errors import GPT2LabError

_MAX_DEPTH = 20


def dump(content: Mapping[str, Any]) -> str:
    """Write YAML that readers of YAML 1.1 and 1.2 read alike.

    Args:
        content: sections of plain values.

    Returns:
        The YAML, in the order of `content`.
    """
    from ruamel.yaml import YAML

    stream = io.StringIO()
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    yaml.representer.add_representer(float, _represent_float)
    yaml.representer.add_representer(str, _represent_text)
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]  # keep the order of the sections
    yaml.dump(content, stream)
    return stream.getvalue()


def read(file: Path) -> Mapping[Any, Any]:
    """Read a YAML 1.2 mapping: `6e-4` is a number, `on` is text; repeated keys and Python tags are errors."""
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise GPT2LabError(f"{file}: not UTF-8 text (byte {error.start + 1}); save it as UTF-8") from None
    except OSError as error:
        raise GPT2LabError(f"{file}: cannot read it: {error.strerror}") from None
    return parse(text, file)


def parse(text: str, file: object, *, simple: bool = False) -> Mapping[Any, Any]:
    """Parse a YAML 1.2 mapping, as `read` does.

    Args:
        text: the YAML.
        file: where it is from, for messages.
        simple: refuse aliases (`*name`) and deep nesting. In a text of a stranger, a few aliases can stand for more
            values than memory holds, and brackets take time with the square of their depth.

    Returns:
        The mapping; empty if the text is.

    Raises:
        GPT2LabError: it is not valid YAML, or not a mapping.
    """
    from ruamel.yaml import YAML
    from ruamel.yaml.error import MarkedYAMLError, YAMLError

    try:
        if simple:
            _check_simple(text, file)
        content = YAML(typ="safe", pure=True).load(text)
    except GPT2LabError:
        raise
    except MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        problem = str(error.problem).partition(" with value")[0]  # the values of a repeated key can be huge
        raise GPT2LabError(f"{file}: line {line}: not valid YAML: {problem}") from None
    except (YAMLError, ValueError, RecursionError) as error:  # impossible dates or numbers, nested too deep
        raise GPT2LabError(f"{file}: not valid YAML: {error}") from None
    if content is None:
        return {}
    if not isinstance(content, Mapping):
        found = {"str": "text", "list": "a list"}.get(type(content).__name__, type(content).__name__)
        raise GPT2LabError(f"{file}: expected sections such as 'train:', found {found}")
    return content


def _check_simple(text: str, file: object) -> None:
    from ruamel.yaml import YAML, events

    depth = 0
    for event in YAML(typ="safe", pure=True).parse(text):
        if isinstance(event, events.AliasEvent):
            raise GPT2LabError(f"{file}: has a YAML alias (*name), which is not allowed here; write out the value")
        depth += isinstance(event, events.CollectionStartEvent) - isinstance(event, events.CollectionEndEvent)
        if depth > _MAX_DEPTH:
            raise GPT2LabError(f"{file}: is nested more than {_MAX_DEPTH} levels deep")


def parse_scalar(text: str) -> Any:
    """Read one value as in a file: `6e-4` is a number; what is not a number or a word for one is text."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        value = YAML(typ="safe", pure=True).load(text)
    except (YAMLError, ValueError, RecursionError):
        return text
    return value if isinstance(value, int | float | bool | None) else text


def _represent_float(representer: Any, value: float) -> Any:
    """Write 1e-08 as 1.0e-08: without the point it is text in YAML 1.1."""
    text = repr(value)
    return representer.represent_scalar("tag:yaml.org,2002:float", text if "." in text else text.replace("e", ".0e"))


def _represent_text(representer: Any, value: str) -> Any:
    """Quote "off": without quotes it is false in YAML 1.1."""
    boolean = value.lower() in ("on", "off", "yes", "no", "y", "n")
    return representer.represent_scalar("tag:yaml.org,2002:str", value, style='"' if boolean else None)
