"""AdamW with decay where it belongs, and its state as named tensors."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from gpt2lab.config import OptimizerConfig
from gpt2lab.errors import GPT2LabError
from gpt2lab.system.distributed import full_tensor, shard_like

_STATE = ("exp_avg", "exp_avg_sq", "step")


def build(model: nn.Module, config: OptimizerConfig) -> torch.optim.AdamW:
    """AdamW over a model's parameters, in one fused kernel where the device has it.

    Tensors of two or more dimensions (matrices, embeddings) decay; biases and layer norms do not: a decayed gain
    or bias is pulled to zero for no gain in generalisation (the GPT-2 reproductions' common practice).
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    settings = {"lr": config.max_lr, "betas": (config.beta1, config.beta2), "eps": config.eps}
    try:
        return torch.optim.AdamW(groups, fused=True, **settings)  # type: ignore[arg-type]
    except RuntimeError:  # this device has no fused kernel
        return torch.optim.AdamW(groups, **settings)  # type: ignore[arg-type]


def clip_gradients(model: nn.Module, max_norm: float) -> Tensor:
    """Scale all gradients together down to `max_norm` (0: leave them) and return the norm before, a float32 scalar."""
    parameters = [p for p in model.parameters() if p.grad is not None]
    total = nn.utils.get_total_norm([p.grad for p in parameters])  # type: ignore[misc]
    norm = full_tensor(total)
    # A CPU knows the norm by now, and need not walk through the gradients again to multiply by 1. (nan is above all.)
    if max_norm > 0 and not (norm.device.type == "cpu" and norm <= max_norm):
        nn.utils.clip_grads_with_norm_(parameters, max_norm, total)
    return norm


def _names(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[str]:
    """The parameters' names in the optimizer's own order, which is that of its groups."""
    name_of = {parameter: name for name, parameter in model.named_parameters()}
    return [name_of[parameter] for group in optimizer.param_groups for parameter in group["params"]]


def state_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """AdamW's state by name, such as `transformer.wte.weight.exp_avg` (shape of the weight, float32)."""
    state = optimizer.state_dict()["state"]
    names = _names(model, optimizer)
    return {f"{names[i]}.{key}": torch.as_tensor(state[i][key]) for i in state for key in _STATE}


def load_state_tensors(model: nn.Module, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Put back what `state_tensors` gave.

    Raises:
        GPT2LabError: a tensor is missing or of another shape.
    """
    if not tensors:  # saved before the first step was taken
        return
    names = _names(model, optimizer)
    parameters = dict(model.named_parameters())
    state = {}
    for i, name in enumerate(names):
        for key in _STATE:
            found, shape = tensors.get(f"{name}.{key}"), () if key == "step" else parameters[name].shape
            if found is None or found.shape != shape:
                raise GPT2LabError(f"optimizer.safetensors: {name}.{key} is missing or does not fit the model")
        state[i] = {
            key: tensors[f"{name}.{key}"] if key == "step" else shard_like(parameters[name], tensors[f"{name}.{key}"])
            for key in _STATE
        }
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
