"""Composes an export: from the name of a checkpoint to a folder for transformers, vLLM, llama.cpp or the Hub.

name ─▶ folder ─▶ weights, in the dtype, without padding ─┐
                  GPT-2's tokenizer ──────────────────────┼─▶ out/, whole or not at all
run's records ─▶ model card ──────────────────────────────┘
"""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from gpt2lab import files
from gpt2lab.config import GPT2_VOCAB_SIZE, GPT2Config
from gpt2lab.data import huggingface_tokenizer
from gpt2lab.data.tokenizer import Tokenizer
from gpt2lab.errors import GPT2LabError
from gpt2lab.export import model_card
from gpt2lab.model import huggingface, resolve

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# All that an export consists of.
NAMES = {huggingface.CONFIG, huggingface.WEIGHTS, huggingface.CARD, *huggingface_tokenizer.NAMES, files.DIGESTS}


def export(
    name: str | Path,
    out: str | Path,
    dtype: str = "fp32",
    *,
    mirror: str | Path | None = None,
    say: Callable[[str], None] = print,
) -> Path:
    """Write the model that a name means to the folder `out`; returns its path.

    Args:
        name: a run (its newest good checkpoint), a model's folder, or a Hub id.
        out: a new or empty folder, or an earlier export that nobody has changed, which is replaced.
        dtype: one of `DTYPES`.
        mirror: folder to take models and the tokenizer's files from, before the Hub.

    Raises:
        GPT2LabError: `out` holds something else; the model cannot be read, has another vocabulary than GPT-2's, or a
            weight that the dtype cannot hold; the file system refused. `out` is then as it was.
    """
    out = Path(out).resolve()
    _check_replaceable(out)
    found = resolve.find_checkpoint(name, mirror=mirror)
    config, weights = huggingface.read(found.folder, DTYPES[dtype])
    for tensor_name, tensor in weights.items():
        if not tensor.isfinite().all():
            raise GPT2LabError(
                f"{found.folder}: {tensor_name} has values that are no numbers in {dtype}; "
                "export as fp32, or another checkpoint"
            )
    padded = config.vocab_size
    config, weights = _trim(found.folder, config, weights)
    tokenizer = Tokenizer(mirror)
    card = model_card.render(str(name), found, config, dtype)
    with files.atomic_directory(out) as temporary:
        huggingface.write(temporary, config, weights)
        tokenizer.save_pretrained(temporary, config.block_size)
        (temporary / huggingface.CARD).write_text(card, encoding="utf-8")
    trimmed = f", vocabulary trimmed from {padded}" if padded > config.vocab_size else ""
    say(f"{found.folder}{trimmed}: written to {out} in {dtype}")
    return out


def _check_replaceable(out: Path) -> None:
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    mend = "give a new or empty folder with --out"
    if not out.is_dir():
        raise GPT2LabError(f"{out} is a file; {mend}")
    if others := sorted({file.name for file in out.iterdir()} - NAMES):
        raise GPT2LabError(f"{out} is not empty, and {others[0]} in it is not from an export; {mend}")
    try:
        files.verify_digests(out, required=NAMES - {files.DIGESTS})
    except GPT2LabError as error:
        raise GPT2LabError(f"{out} is not empty, and no export as it was written ({error}); {mend}") from None


def _trim(folder: Path, config: GPT2Config, weights: dict[str, Tensor]) -> tuple[GPT2Config, dict[str, Tensor]]:
    """The model without the rows that pad its vocabulary: no text has their ids."""
    if config.vocab_size < GPT2_VOCAB_SIZE:
        raise GPT2LabError(
            f"{folder}: its vocabulary of {config.vocab_size} is not GPT-2's of {GPT2_VOCAB_SIZE}, so there is no "
            "tokenizer to export with it; GPT2.save_pretrained writes the weights alone"
        )
    rows = {name: weights[name][:GPT2_VOCAB_SIZE] for name in ("transformer.wte.weight", "lm_head.weight")}
    return config.model_copy(update={"vocab_size": GPT2_VOCAB_SIZE}), weights | rows
