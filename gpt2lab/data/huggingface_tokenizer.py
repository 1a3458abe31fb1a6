"""GPT-2's tokenizer as the files that other tools read.

vocab.bpe, encoder.json ──▶ merges.txt · vocab.json · tokenizer.json · tokenizer_config.json

The first two are OpenAI's, by the names that transformers gave them. `tokenizer.json` says the same in one file, which
is what the `tokenizers` library and all that is built on it opens.
"""

import json
from pathlib import Path
from typing import Any

from gpt2lab import files

NAMES = ("merges.txt", "vocab.json", "tokenizer.json", "tokenizer_config.json")


def write(folder: Path, merges: Path, ids: Path, *, eot_text: str, block_size: int) -> None:
    """Write the files of `NAMES` into `folder`, each whole or not at all.

    Args:
        merges: `vocab.bpe`.
        ids: `encoder.json`.
        eot_text: the one special token.
        block_size: tokens that the model takes.

    Raises:
        GPT2LabError: the file system refused.
    """
    vocabulary = json.loads(ids.read_bytes())
    lines = merges.read_text(encoding="utf-8").splitlines()[1:]  # line 0: version
    contents = {
        "merges.txt": merges.read_bytes(),
        "vocab.json": ids.read_bytes(),
        "tokenizer.json": _json(_pipeline(vocabulary, lines, eot_text)),
        "tokenizer_config.json": _json(_config(eot_text, block_size)),
    }
    files.make_folder(folder)
    for name in NAMES:
        with files.atomic_write(folder / name) as temporary:
            temporary.write_bytes(contents[name])


def _json(values: dict[str, Any]) -> bytes:
    return json.dumps(values, ensure_ascii=False, indent=1).encode() + b"\n"


def _pipeline(vocabulary: dict[str, int], merges: list[str], eot_text: str) -> dict[str, Any]:
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": vocabulary[eot_text], "content": eot_text, **flags, "special": True}],
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": byte_level | {"trim_offsets": False},
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "",
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": vocabulary,
            "merges": merges,
        },
    }


def _config(eot_text: str, block_size: int) -> dict[str, Any]:
    return {
        "tokenizer_class": "GPT2Tokenizer",
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,  # decoding is to give back every space
        "errors": "replace",
        "model_max_length": block_size,
        **dict.fromkeys(("bos_token", "eos_token", "unk_token"), eot_text),
    }
