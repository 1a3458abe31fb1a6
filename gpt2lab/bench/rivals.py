"""Other people's training steps, each with its own defaults, on the same shape and the same random tokens.

A step is data, forward, backward, clipping at 1.0 and the optimizer. A contender trains for ever and calls `on_step`
before each step, which measures time, may block, or raises to end it. Code of other projects is read at run time, from
a checkout that the user names.
"""

import ast
import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor, nn

from gpt2lab import packages
from gpt2lab.bench import checkouts
from gpt2lab.config import GPT2_VOCAB_SIZE, GPT2Config

OnStep = Callable[[], None]  # the device may still be busy with the previous step
Autocast = Callable[[], contextlib.AbstractContextManager[Any]]


class Shape(NamedTuple):
    """The work of a step: `accumulation` micro-steps of B sequences of `model.block_size` tokens."""

    model: GPT2Config
    B: int
    accumulation: int
    device: str

    @property
    def tokens(self) -> int:
        """Tokens of a step."""
        return self.B * self.accumulation * self.model.block_size


def random_batches(shape: Shape) -> Iterator[tuple[Tensor, Tensor]]:
    """Inputs and targets, each int64 (B, T), on the device; the same for every contender."""
    generator = torch.Generator().manual_seed(0)
    vocabulary = min(shape.model.vocab_size, GPT2_VOCAB_SIZE)
    while True:
        tokens = torch.randint(vocabulary, (shape.B, shape.model.block_size + 1), generator=generator).to(shape.device)
        yield tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()


def train_loop(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    loss_of: Callable[[Tensor, Tensor], Tensor],
    shape: Shape,
    on_step: OnStep,
    autocast: Autocast = contextlib.nullcontext,
) -> NoReturn:
    """The usual loop: accumulate, clip, step, zero the gradients.

    Args:
        model: whose gradients are clipped.
        optimizer: of its parameters.
        loss_of: the mean loss of inputs and targets, each (B, T).
        shape: of a step.
        on_step: called before each step.
        autocast: context of the forward pass.
    """
    batches = random_batches(shape)
    while True:
        on_step()
        for _ in range(shape.accumulation):
            x, y = next(batches)
            with autocast():
                loss = loss_of(x, y) / shape.accumulation
            torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def transformers_default(on_step: OnStep, shape: Shape) -> None:
    """GPT2LMHeadModel as it comes: fp32, eager, torch's AdamW."""
    model = _build_transformers_gpt2(shape)
    optimizer = torch.optim.AdamW(model.parameters(), lr=6e-4)
    # the model shifts the labels itself
    train_loop(model, optimizer, lambda x, _: model(input_ids=x, labels=x).loss, shape, on_step)


def transformers_best(on_step: OnStep, shape: Shape) -> None:
    """GPT2LMHeadModel with bf16 autocast and fused AdamW, compiled on CUDA."""
    model = _build_transformers_gpt2(shape)
    optimizer = torch.optim.AdamW(model.parameters(), lr=6e-4, fused=True)
    compiled: Any = torch.compile(model) if shape.device == "cuda" else model
    train_loop(model, optimizer, lambda x, _: compiled(input_ids=x, labels=x).loss, shape, on_step, _bf16(shape))


def transformers_trainer(on_step: OnStep, shape: Shape) -> None:
    """GPT2LMHeadModel under transformers.Trainer with its defaults (fp32); needs `accelerate`."""
    import tempfile

    packages.require("transformers", "it", None)
    packages.require("accelerate", "transformers' Trainer", None)
    import transformers

    class RandomRows(torch.utils.data.IterableDataset[dict[str, Tensor]]):
        def __iter__(self) -> Iterator[dict[str, Tensor]]:
            for x, _ in random_batches(shape):
                for row in x.cpu():
                    yield {"input_ids": row, "labels": row}

    class StepCallback(transformers.TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            on_step()

    arguments = transformers.TrainingArguments(
        output_dir=tempfile.mkdtemp(),
        per_device_train_batch_size=shape.B,
        gradient_accumulation_steps=shape.accumulation,
        max_steps=10**9,
        save_strategy="no",
        report_to=[],
        logging_strategy="no",
        disable_tqdm=True,
        use_cpu=shape.device == "cpu",
    )
    model = _build_transformers_gpt2(shape)
    transformers.Trainer(model=model, args=arguments, train_dataset=RandomRows(), callbacks=[StepCallback()]).train()


def nanogpt(on_step: OnStep, shape: Shape, checkout: str) -> None:
    """Model and optimizer of nanoGPT with the defaults of its train.py: compiled; on a CPU no autocast, so fp32."""
    sys.path.insert(0, str(checkouts.find_file("nanogpt", checkout).parent))
    import model as module  # type: ignore[import-not-found]  # in the checkout

    config = module.GPTConfig(**_model_sizes(shape), dropout=0.0, bias=False)
    model = module.GPT(config).to(shape.device)
    optimizer = model.configure_optimizers(0.1, 6e-4, (0.9, 0.95), shape.device)
    compiled: Any = torch.compile(model)
    autocast = contextlib.nullcontext if shape.device == "cpu" else _bf16(shape)
    train_loop(model, optimizer, lambda x, y: compiled(x, y)[1], shape, on_step, autocast)


def build_nanogpt(on_step: OnStep, shape: Shape, checkout: str) -> None:
    """Model and optimizer of build-nanogpt as its script uses them: bf16 autocast on every device, not compiled.

    The script trains when it is imported, so only its classes and imports are executed.
    """
    file = checkouts.find_file("build-nanogpt", checkout)
    tree = ast.parse(file.read_text(encoding="utf-8"))
    kept = (ast.ClassDef, ast.Import, ast.ImportFrom)
    tree.body = [node for node in tree.body if isinstance(node, kept) and "hellaswag" not in ast.unparse(node)]
    namespace: dict[str, Any] = {"__name__": "train_gpt2", "master_process": False}
    sys.modules["train_gpt2"] = type(sys)("train_gpt2")  # dataclass looks its module up
    exec(compile(tree, str(file), "exec"), namespace)
    model = namespace["GPT"](namespace["GPTConfig"](**_model_sizes(shape))).to(shape.device)
    torch.set_float32_matmul_precision("high")  # as its script does
    optimizer = model.configure_optimizers(weight_decay=0.1, learning_rate=6e-4, device_type=shape.device)
    train_loop(model, optimizer, lambda x, y: model(x, y)[1], shape, on_step, _bf16(shape))


RIVALS: dict[str, Callable[..., None]] = {
    "transformers": transformers_default,
    "transformers-best": transformers_best,
    "transformers-trainer": transformers_trainer,
    "nanogpt": nanogpt,
    "build-nanogpt": build_nanogpt,
}


def describe(name: str, device: str) -> str:
    """What is measured under the name of a rival: whose step, in which precision, and what makes it fast.

    Args:
        name: of a rival; other names are returned as they are.
        device: cpu, cuda or mps.
    """
    cuda = device == "cuda"
    return {
        "transformers": "transformers, its defaults (fp32)",
        "transformers-best": f"transformers, bf16, fused AdamW{', compiled' * cuda}",
        "transformers-trainer": "transformers' Trainer, its defaults",
        "nanogpt": f"nanoGPT, {'fp32' if device == 'cpu' else 'bf16'}, compiled",
        "build-nanogpt": f"build-nanogpt, bf16{', fused AdamW' * cuda}",
    }.get(name, name)


def _build_transformers_gpt2(shape: Shape) -> nn.Module:
    packages.require("transformers", "it", None)
    import transformers

    settings: dict[str, Any] = shape.model.model_dump(include={"vocab_size", "n_layer", "n_head", "n_embd"})
    settings |= {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}  # no dropout
    config = transformers.GPT2Config(n_positions=shape.model.block_size, use_cache=False, **settings)
    model: Any = transformers.GPT2LMHeadModel(config)
    return model.to(shape.device).train()  # type: ignore[no-any-return]


def _model_sizes(shape: Shape) -> dict[str, int]:
    """Arguments of the GPTConfig of nanoGPT and build-nanogpt, with the vocabulary that they pad to."""
    return shape.model.model_dump(include={"block_size", "n_layer", "n_head", "n_embd"}) | {"vocab_size": 50304}


def _bf16(shape: Shape) -> Autocast:
    return lambda: torch.autocast(shape.device, torch.bfloat16)
