"""The files that make an exported folder a Hugging Face Space: app, requirements, and the settings in the README.

https://huggingface.co/docs/hub/spaces-config-reference
"""

import importlib.metadata
import json
import shutil
from pathlib import Path

from gpt2lab.model import huggingface

APP, REQUIREMENTS = "app.py", "requirements.txt"
NAMES = {APP, REQUIREMENTS}
_OLDEST_GRADIO = "6.16.0"  # of the extra `app`, where gradio is not installed


def write(folder: Path, title: str) -> None:
    """Add the files of a Space to an export, and replace the settings of its model card by those of a Space.

    Args:
        folder: has the files of an export.
        title: of the Space.
    """
    try:
        gradio = importlib.metadata.version("gradio")
    except importlib.metadata.PackageNotFoundError:
        gradio = _OLDEST_GRADIO
    shutil.copyfile(Path(__file__).with_name("space_app.py"), folder / APP)
    requirements = ("torch>=2.11", "transformers>=5", "safetensors>=0.5", f"gradio=={gradio}")
    (folder / REQUIREMENTS).write_text("".join(f"{line}\n" for line in requirements), encoding="utf-8")
    settings = {"title": title, "sdk": "gradio", "sdk_version": gradio, "app_file": APP, "pinned": False}
    front = "".join(f"{key}: {json.dumps(value, ensure_ascii=False)}\n" for key, value in settings.items())
    card = folder / huggingface.CARD
    _, _, body = card.read_text(encoding="utf-8").split("---\n", 2)
    card.write_text(f"---\n{front}---\n{body}", encoding="utf-8")
