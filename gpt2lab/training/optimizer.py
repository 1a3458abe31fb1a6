"""AdamW and Muon, gradient clipping, steps that can be skipped, and the optimizers' state as named tensors."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from gpt2lab.config import OptimizerConfig
from gpt2lab.errors import GPT2LabError
from gpt2lab.model import huggingface
from gpt2lab.model.language_model import LanguageModel
from gpt2lab.system.distributed import DistContext, full_tensor, shard_like
from gpt2lab.training import muon


def check(config: OptimizerConfig, sharded: bool) -> None:
    """Check that the optimizer can work on the parameters as they are divided among the ranks.

    Args:
        config: names the optimizer.
        sharded: whether each rank has a part of every tensor.

    Raises:
        GPT2LabError: Muon needs whole matrices.
    """
    if config.name == "muon" and sharded:
        raise GPT2LabError("optimizer.name muon needs whole matrices; use it without system.shard")


def build(
    model: LanguageModel, config: OptimizerConfig, dist: DistContext | None = None, dtype: torch.dtype = torch.float32
) -> list[torch.optim.Optimizer]:
    """Build AdamW, which updates all parameters in one fused kernel; or Muon for the matrices of the blocks first.

    With AdamW alone, tensors of two or more dimensions (matrices, embeddings) decay; biases and layer norms do not, as
    is common in reproductions of GPT-2. With Muon, only the matrices of the blocks decay.

    A group's `lr_scale` is the ratio of its learning rate to that of the schedule.

    Args:
        model: on its device.
        config: learning rates, betas, epsilon and weight decay.
        dist: the ranks that share Muon's work; None: a single process.
        dtype: of Muon's matrix products: bfloat16, or float32 for any other.

    Returns:
        The optimizers of all parameters. `check` says which cannot be sharded.
    """
    named = dict(model.named_parameters())
    embedding, head = (named.get(name) for name in huggingface.vocabulary_tensors(model.config))
    uses_muon = config.name == "muon"
    in_blocks = {p for p in model.trunk.blocks.parameters() if p.dim() == 2} if uses_muon else set()
    groups: dict[tuple[float, float], list[Tensor]] = {}
    for parameter in named.values():
        if parameter in in_blocks:
            continue
        decay = config.weight_decay if parameter.dim() >= 2 and not uses_muon else 0.0
        lr = config.embedding_lr if parameter is embedding else config.head_lr if parameter is head else None
        groups.setdefault((decay, (lr or config.max_lr) / config.max_lr), []).append(parameter)
    adamw = torch.optim.AdamW(
        [{"params": params, "weight_decay": decay, "lr_scale": scale} for (decay, scale), params in groups.items()],
        lr=config.max_lr,
        betas=(config.beta1, config.beta2),
        eps=config.eps,
        fused=True,
    )
    if not uses_muon:
        return [adamw]
    fused = [p for name, p in named.items() if p in in_blocks and name.endswith("c_attn.weight")]
    single = [p for name, p in named.items() if p in in_blocks and not name.endswith("c_attn.weight")]
    matrices = [{"params": params, "splits": n, "lr_scale": 1.0} for params, n in ((fused, 3), (single, 1)) if params]
    muon_dtype = torch.bfloat16 if dtype == torch.bfloat16 else torch.float32
    return [muon.Muon(matrices, config.max_lr, config.momentum, config.weight_decay, muon_dtype, dist), adamw]


def clip_gradients(model: nn.Module, max_norm: float) -> Tensor:
    """Scale all gradients together, so that their norm is at most `max_norm`.

    Args:
        model: with gradients.
        max_norm: 0 leaves the gradients as they are.

    Returns:
        The norm before, a float32 scalar.
    """
    parameters = [p for p in model.parameters() if p.grad is not None]
    total = nn.utils.get_total_norm([p.grad for p in parameters])  # type: ignore[misc]
    norm = full_tensor(total)
    # On a CPU the norm is known, so gradients below the limit need not be multiplied by 1. (nan <= max_norm is false.)
    if max_norm > 0 and not (norm.device.type == "cpu" and norm <= max_norm):
        nn.utils.clip_grads_with_norm_(parameters, max_norm, total)
    return norm


def step_unless(skip: Tensor, optimizer: torch.optim.Optimizer) -> None:
    """Take an optimizer step, or leave weights and optimizer state exactly as they are.

    A fused optimizer reads the flag in its kernel (`found_inf`, which torch's GradScaler uses too), so the host does
    not wait for the device. Other optimizers, and torch's kernel for MPS, need the decision on the host.

    Args:
        skip: 1.0 to skip the step, else 0.0; a float32 scalar on the device.
        optimizer: its gradients must be present and unscaled.
    """
    if getattr(optimizer, "_step_supports_amp_scaling", False) and skip.device.type != "mps":
        optimizer.found_inf = skip  # type: ignore[attr-defined]
        optimizer.step()
    elif not skip:
        optimizer.step()


def state_tensors(model: nn.Module, optimizers: Sequence[torch.optim.Optimizer]) -> dict[str, Tensor]:
    """Return the optimizers' state by name, such as `transformer.wte.weight.exp_avg`.

    Args:
        model: gives the parameters' names.
        optimizers: of the model's parameters.

    Returns:
        The moments, in the shapes of their parameters, and AdamW's step counts, scalars; all float32.
    """
    tensors: dict[str, Tensor] = {}
    for optimizer in optimizers:
        keys, names = _state_keys(optimizer), _parameter_names(model, optimizer)
        state = optimizer.state_dict()["state"]
        tensors |= {f"{names[i]}.{key}": torch.as_tensor(state[i][key]) for i in sorted(state) for key in keys}
    return tensors


def load_state_tensors(
    model: nn.Module, optimizers: Sequence[torch.optim.Optimizer], tensors: Mapping[str, Tensor]
) -> None:
    """Restore what `state_tensors` returned.

    Args:
        model: gives the parameters' names and shapes; it may be sharded.
        optimizers: of the model's parameters.
        tensors: by name, not sharded; empty if no step was taken yet.

    Raises:
        GPT2LabError: a tensor is missing or of another shape.
    """
    if not tensors:
        return
    parameters = dict(model.named_parameters())
    for optimizer in optimizers:
        state: dict[int, dict[str, Tensor]] = {}
        for i, name in enumerate(_parameter_names(model, optimizer)):
            state[i] = {}
            for key in _state_keys(optimizer):
                tensor, shape = tensors.get(f"{name}.{key}"), () if key == "step" else parameters[name].shape
                if tensor is None or tensor.shape != shape:
                    raise GPT2LabError(f"optimizer.safetensors: {name}.{key} is missing or does not fit the model")
                state[i][key] = tensor if key == "step" else shard_like(parameters[name], tensor)
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _state_keys(optimizer: torch.optim.Optimizer) -> tuple[str, ...]:
    return ("momentum",) if isinstance(optimizer, muon.Muon) else ("exp_avg", "exp_avg_sq", "step")


def _parameter_names(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[str]:
    """The parameters' names in the order of the optimizer's groups."""
    name_of = {parameter: name for name, parameter in model.named_parameters()}
    return [name_of[parameter] for group in optimizer.param_groups for parameter in group["params"]]
