"""The `export` command: from the name of a checkpoint to a folder for transformers, vLLM, llama.cpp or the Hub.

name ─▶ folder ─▶ weights, in the dtype, without padding ─┐
                  GPT-2's tokenizer ──────────────────────┼─▶ out/, complete or unchanged
run's records ─▶ model card ──────────────────────────────┘
"""

import logging
import re
from pathlib import Path

import torch
from torch import Tensor

from gpt2lab import files, progress
from gpt2lab.config import GPT2_VOCAB_SIZE, GPT2Config
from gpt2lab.data import huggingface_tokenizer
from gpt2lab.data.tokenizer import Tokenizer
from gpt2lab.errors import GPT2LabError
from gpt2lab.export import model_card, space
from gpt2lab.model import huggingface, resolve

logger = logging.getLogger(__name__)
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# The files of an export.
_TITLE = re.compile(r"^# (.+)$", re.MULTILINE)  # of a model card
NAMES = {huggingface.CONFIG, huggingface.WEIGHTS, huggingface.CARD, *huggingface_tokenizer.NAMES, files.DIGESTS}


def export(
    name: str | Path,
    out: str | Path,
    dtype: str = "fp32",
    *,
    mirror: str | Path | None = None,
    as_space: bool = False,
    is_temporary: bool = False,
) -> Path:
    """Export a model with its tokenizer and a model card.

    Args:
        name: a run (its newest valid checkpoint), the folder of a model, a file of another project, or a Hub id.
        out: a new or empty folder, or an unchanged earlier export, which is replaced.
        dtype: of the weights, one of `DTYPES`.
        mirror: folder with models and the tokenizer's files, searched before the Hub.
        as_space: add an app, so that the folder is a Space.
        is_temporary: the caller removes `out`, so do not log where the export is.

    Returns:
        The absolute path of `out`.

    Raises:
        GPT2LabError: `out` has other content, or the export of a model of another name; the model cannot be read, has
            another vocabulary than GPT-2's, or a weight that the dtype cannot represent; or a file cannot be written.
            `out` is then unchanged.
    """
    out = Path(out).resolve()
    _check_replaceable(out)
    checkpoint = resolve.find_checkpoint(name, mirror=mirror)
    title = model_card.title_of(str(name), checkpoint)
    if checkpoint.folder.resolve() != out:
        _require_same_model(out, title)
    with progress.Phase("loading the model", announce=True):
        config, weights = resolve.read(checkpoint, DTYPES[dtype])
    for tensor_name, tensor in weights.items():
        if not tensor.isfinite().all():
            raise GPT2LabError(
                f"{checkpoint.folder}: {tensor_name} has values that {dtype} cannot represent; "
                "export it as fp32, or export another checkpoint"
            )
    padded = config.vocab_size
    config, weights = _trim(checkpoint.folder, config, weights)
    tokenizer = Tokenizer(mirror)
    card = model_card.render(str(name), checkpoint, config, dtype)
    with progress.Phase(f"writing {out.name}"), files.atomic_directory(out) as temporary:
        huggingface.write(temporary, config, weights)
        tokenizer.save_pretrained(temporary, config.block_size)
        (temporary / huggingface.CARD).write_text(card, encoding="utf-8")
        if as_space:
            space.write(temporary, title)
    trimmed = f", vocabulary trimmed from {padded}" if padded > config.vocab_size else ""
    logger.info(f"{checkpoint.folder}{trimmed}: {'in' if is_temporary else f'written to {out} in'} {dtype}")
    return out


def _check_replaceable(out: Path) -> None:
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    advice = "give a new or empty folder with --out"
    if not out.is_dir():
        raise GPT2LabError(f"{out} is a file; {advice}")
    if others := sorted({file.name for file in out.iterdir()} - NAMES - space.NAMES):
        raise GPT2LabError(f"{out} holds {others[0]!r}, which is not from an export; {advice}")
    try:
        files.verify_digests(out, required=NAMES - {files.DIGESTS})
    except GPT2LabError as error:
        raise GPT2LabError(f"{out} is not empty, and not an unchanged export ({error}); {advice}") from None


def _require_same_model(out: Path, title: str) -> None:
    """Check that an earlier export is of the model of the same name: that of another one may be its last copy."""
    card = out / huggingface.CARD
    before = _TITLE.search(card.read_text(encoding="utf-8")) if card.exists() else None
    if before and before[1] != title:
        raise GPT2LabError(f"{out} holds the export of {before[1]}, not of {title}; give another folder with --out")


def _trim(folder: Path, config: GPT2Config, weights: dict[str, Tensor]) -> tuple[GPT2Config, dict[str, Tensor]]:
    """Remove the rows that pad the vocabulary, which no token has."""
    if config.vocab_size < GPT2_VOCAB_SIZE:
        raise GPT2LabError(
            f"{folder}: its vocabulary of {config.vocab_size} is not GPT-2's of {GPT2_VOCAB_SIZE}, so there is no "
            "tokenizer to export with it; GPT2.save_pretrained writes the weights alone"
        )
    rows = {name: weights[name][:GPT2_VOCAB_SIZE] for name in huggingface.vocabulary_tensors(config)}
    return config.model_copy(update={"vocab_size": GPT2_VOCAB_SIZE}), weights | rows
