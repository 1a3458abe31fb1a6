"""Who can be timed: each trains on the same shape for ever, in its own way and with its own defaults.

Data, forward, backward, clipping at 1.0 and the optimizer belong to a step. Between two steps each calls `between`,
which takes the time and may wait, or raise to end it. Other projects' code is read at run time, from a checkout that
the user names.
"""

import ast
import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor, nn

from gpt2lab.config import GPT2_VOCAB_SIZE, GPT2Config
from gpt2lab.errors import GPT2LabError

Between = Callable[[], None]  # called before the first step and after each; the device may still be busy with it


class Shape(NamedTuple):
    """What every contender does in a step: accumulation micro-steps of B sequences of block_size tokens."""

    model: GPT2Config
    B: int
    accumulation: int
    device: str

    @property
    def tokens(self) -> int:
        """Tokens of a step."""
        return self.B * self.accumulation * self.model.block_size


def batches(shape: Shape) -> Iterator[tuple[Tensor, Tensor]]:
    """Made-up (x, y), each int64 (B, T), on the device, the same ones for everybody."""
    generator = torch.Generator().manual_seed(0)
    highest = min(shape.model.vocab_size, GPT2_VOCAB_SIZE)
    while True:
        tokens = torch.randint(highest, (shape.B, shape.model.block_size + 1), generator=generator).to(shape.device)
        yield tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()


def loop(
    between: Between,
    shape: Shape,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    loss_of: Callable[[Tensor, Tensor], Tensor],
    autocast: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext,
) -> NoReturn:
    """The loop that everybody writes: accumulate, clip, step, zero."""
    data = batches(shape)
    while True:
        between()
        for _ in range(shape.accumulation):
            x, y = next(data)
            with autocast():
                loss = loss_of(x, y) / shape.accumulation
            torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def transformers_plain(between: Between, shape: Shape, checkout: str | None = None) -> None:
    """GPT2LMHeadModel as it comes: fp32, eager, torch's AdamW."""
    model = _theirs(shape)
    loop(between, shape, model, torch.optim.AdamW(model.parameters(), lr=6e-4), _their_loss(model))


def transformers_best(between: Between, shape: Shape, checkout: str | None = None) -> None:
    """GPT2LMHeadModel at its best: bf16 autocast, fused AdamW, compiled on CUDA."""
    model = _theirs(shape)
    optimizer = torch.optim.AdamW(model.parameters(), lr=6e-4, fused=True)
    trained: Any = torch.compile(model) if shape.device == "cuda" else model
    loop(between, shape, model, optimizer, _their_loss(trained), lambda: torch.autocast(shape.device, torch.bfloat16))


def transformers_trainer(between: Between, shape: Shape, checkout: str | None = None) -> None:
    """GPT2LMHeadModel under transformers.Trainer with its defaults (fp32), which wants `accelerate`."""
    import tempfile

    import transformers

    try:
        import accelerate  # noqa: F401
    except ImportError as error:
        raise GPT2LabError("transformers' Trainer needs accelerate: pip install accelerate") from error
    model, data = _theirs(shape), batches(shape)

    class Endless(torch.utils.data.IterableDataset[dict[str, Tensor]]):
        def __iter__(self) -> Iterator[dict[str, Tensor]]:
            for x, _ in data:
                for row in x.cpu():
                    yield {"input_ids": row, "labels": row}

    class Gate(transformers.TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            between()

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
    transformers.Trainer(model=model, args=arguments, train_dataset=Endless(), callbacks=[Gate()]).train()


def nanogpt(between: Between, shape: Shape, checkout: str | None = None) -> None:
    """nanoGPT's model and optimizer with the defaults of its train.py: compiled; on a CPU without autocast, so fp32."""
    sys.path.insert(0, str(_file(checkout, "model.py").parent))
    import model as theirs  # type: ignore[import-not-found]  # in the checkout

    size = shape.model
    config = theirs.GPTConfig(
        block_size=size.block_size, vocab_size=50304, n_layer=size.n_layer, n_head=size.n_head, n_embd=size.n_embd,
        dropout=0.0, bias=False,
    )  # fmt: skip
    net = theirs.GPT(config).to(shape.device)
    optimizer = net.configure_optimizers(0.1, 6e-4, (0.9, 0.95), shape.device)
    compiled: Any = torch.compile(net)
    loop(between, shape, net, optimizer, lambda x, y: compiled(x, y)[1], _usual_autocast(shape))


def build_nanogpt(between: Between, shape: Shape, checkout: str | None = None) -> None:
    """build-nanogpt's model and optimizer; its script trains when it is imported, so only its classes are taken."""
    file = _file(checkout, "train_gpt2.py")
    tree = ast.parse(file.read_text(encoding="utf-8"))
    wanted = (ast.ClassDef, ast.Import, ast.ImportFrom)
    tree.body = [n for n in tree.body if isinstance(n, wanted) and "hellaswag" not in ast.unparse(n)]
    theirs: dict[str, Any] = {"__name__": "train_gpt2", "master_process": False}
    module = type(sys)("train_gpt2")  # dataclass looks its module up
    sys.modules["train_gpt2"] = module
    exec(compile(tree, str(file), "exec"), theirs)
    size = shape.model
    config = theirs["GPTConfig"](
        block_size=size.block_size, vocab_size=50304, n_layer=size.n_layer, n_head=size.n_head, n_embd=size.n_embd
    )
    net = theirs["GPT"](config).to(shape.device)
    torch.set_float32_matmul_precision("high")  # as its script does
    optimizer = net.configure_optimizers(weight_decay=0.1, learning_rate=6e-4, device_type=shape.device)
    # its script goes through bf16 autocast on every device, and does not compile
    loop(
        between, shape, net, optimizer, lambda x, y: net(x, y)[1], lambda: torch.autocast(shape.device, torch.bfloat16)
    )


RIVALS: dict[str, Callable[[Between, Shape, str | None], None]] = {
    "transformers": transformers_plain,
    "transformers-best": transformers_best,
    "transformers-trainer": transformers_trainer,
    "nanogpt": nanogpt,
    "build-nanogpt": build_nanogpt,
}


def _theirs(shape: Shape) -> nn.Module:
    import transformers

    size = shape.model
    config = transformers.GPT2Config(
        vocab_size=size.vocab_size, n_positions=size.block_size, n_embd=size.n_embd, n_layer=size.n_layer,
        n_head=size.n_head, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, use_cache=False,
    )  # fmt: skip
    model: Any = transformers.GPT2LMHeadModel(config)
    return model.to(shape.device).train()  # type: ignore[no-any-return]


def _their_loss(model: Any) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda x, y: model(input_ids=x, labels=x).loss  # it shifts the labels itself


def _usual_autocast(shape: Shape) -> Callable[[], contextlib.AbstractContextManager[Any]]:
    if shape.device == "cpu":
        return contextlib.nullcontext
    return lambda: torch.autocast(shape.device, torch.bfloat16)


def _file(checkout: str | None, name: str) -> Path:
    file = Path(checkout or "") / name
    if not file.is_file():
        raise GPT2LabError(f"{checkout}: no {name} there; give the folder of a checkout")
    return file
