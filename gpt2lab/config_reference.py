"""The settings reference (docs/settings.md) and the JSON schema of recipes (config/schema.json), made from `config`."""

import json
from typing import Annotated, Any, Literal, get_args, get_origin

from gpt2lab.config import Config, leaves


def json_schema() -> str:
    """The JSON schema of a recipe, for editors that complete and check YAML."""
    return json.dumps(Config.model_json_schema(), indent=2) + "\n"


def markdown() -> str:
    """Every setting in Markdown tables, one table per section."""
    lines = [
        "# Settings",
        "",
        "Each setting is a key in a recipe (`key: value` below `section:`) and an option on the command line",
        "(`--section.key value`). Recipes override these defaults. Written by `gpt2lab settings`.",
    ]
    section = ""
    for name, field in leaves():
        if name.partition(".")[0] != section:
            section = name.partition(".")[0]
            lines += ["", f"## {section}", "", "| setting | type | default | meaning |", "|---|---|---|---|"]
        default = json.dumps(field.default) if field.default in (None, True, False) else str(field.default)
        meaning = " ".join(field.description.split())
        lines.append(f"| `{name}` | {_type_name(field.annotation)} | `{default}` | {meaning} |")
    return "\n".join(lines) + "\n"


def _type_name(annotation: Any) -> str:
    """A type as text: `int`, `float or null`, `one of auto, on, off`."""
    arguments = get_args(annotation)
    if get_origin(annotation) is Literal:
        return f"one of {', '.join(map(str, arguments))}" if len(arguments) > 1 else str(arguments[0])
    if get_origin(annotation) is Annotated:
        return _type_name(arguments[0])
    if arguments:
        return " or ".join(_type_name(argument) for argument in arguments)
    return "null" if annotation is type(None) else str(annotation.__name__)
