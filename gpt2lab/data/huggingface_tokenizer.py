"""Write GPT-2's tokenizer as the files that other libraries read.

    vocab.bpe, encoder.json ──▶ merges.txt, vocab.json, tokenizer.json, tokenizer_config.json

merges.txt and vocab.json are OpenAI's files under the names that transformers uses. tokenizer.json has the same content
in one file, which the `tokenizers` library reads.
"""

import json
from pathlib import Path
from typing import Any

from gpt2lab import files

NAMES = ("merges.txt", "vocab.json", "tokenizer.json", "tokenizer_config.json")


def write(folder: Path, merges: Path, ids: Path, *, eot_text: str, block_size: int) -> None:
    """Write the files of `NAMES`.

    Args:
        folder: where to write. It is made if it does not exist.
        merges: path of `vocab.bpe`.
        ids: path of `encoder.json`.
        eot_text: the only special token.
        block_size: maximum number of tokens of the model.

    Raises:
        GPT2LabError: the file system refused a write.
    """
    vocabulary = json.loads(ids.read_bytes())
    lines = merges.read_text(encoding="utf-8").splitlines()[1:]  # line 0 is the version
    contents = {
        "merges.txt": merges.read_bytes(),
        "vocab.json": ids.read_bytes(),
        "tokenizer.json": _to_json(_tokenizer_json(vocabulary, lines, eot_text)),
        "tokenizer_config.json": _to_json(_tokenizer_config(eot_text, block_size)),
    }
    for name in NAMES:
        with files.atomic_write(folder / name) as temporary:
            temporary.write_bytes(contents[name])


def _to_json(values: dict[str, Any]) -> bytes:
    return json.dumps(values, ensure_ascii=False, indent=1).encode() + b"\n"


def _tokenizer_json(vocabulary: dict[str, int], merges: list[str], eot_text: str) -> dict[str, Any]:
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


def _tokenizer_config(eot_text: str, block_size: int) -> dict[str, Any]:
    return {
        "tokenizer_class": "GPT2Tokenizer",
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,  # decoding must return every space
        "errors": "replace",
        "model_max_length": block_size,
        **dict.fromkeys(("bos_token", "eos_token", "unk_token"), eot_text),
    }
