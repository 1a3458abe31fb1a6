"""AdamW, gradient clipping, optimizer steps that can be skipped, and the optimizer's state as named tensors."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from gpt2lab.config import OptimizerConfig
from gpt2lab.errors import GPT2LabError
from gpt2lab.system.distributed import full_tensor, shard_like

_STATE = ("exp_avg", "exp_avg_sq", "step")


def build(model: nn.Module, config: OptimizerConfig) -> torch.optim.AdamW:
    """Build AdamW, which updates all parameters in one fused kernel.

    Tensors of two or more dimensions (matrices, embeddings) decay; biases and layer norms do not, as is common in
    reproductions of GPT-2.

    Args:
        model: on its device.
        config: learning rate, betas, epsilon and weight decay.

    Returns:
        The optimizer of all parameters that require a gradient.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.max_lr, betas=(config.beta1, config.beta2), eps=config.eps, fused=True)


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


def state_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return AdamW's state by name, such as `transformer.wte.weight.exp_avg`.

    Args:
        model: gives the parameters' names.
        optimizer: of the model's parameters.

    Returns:
        The moments, in the shapes of their parameters, and the step counts, scalars; all float32.
    """
    state = optimizer.state_dict()["state"]
    names = _parameter_names(model, optimizer)
    return {f"{names[i]}.{key}": torch.as_tensor(state[i][key]) for i in state for key in _STATE}


def load_state_tensors(model: nn.Module, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Restore what `state_tensors` returned.

    Args:
        model: gives the parameters' names and shapes; it may be sharded.
        optimizer: of the model's parameters.
        tensors: by name, not sharded; empty if no step was taken yet.

    Raises:
        GPT2LabError: a tensor is missing or of another shape.
    """
    if not tensors:
        return
    names, parameters = _parameter_names(model, optimizer), dict(model.named_parameters())
    state: dict[int, dict[str, Tensor]] = {}
    for i, name in enumerate(names):
        state[i] = {}
        for key in _STATE:
            tensor, shape = tensors.get(f"{name}.{key}"), () if key == "step" else parameters[name].shape
            if tensor is None or tensor.shape != shape:
                raise GPT2LabError(f"optimizer.safetensors: {name}.{key} is missing or does not fit the model")
            state[i][key] = tensor if key == "step" else shard_like(parameters[name], tensor)
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _parameter_names(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[str]:
    """The parameters' names in the order of the optimizer's groups."""
    name_of = {parameter: name for name, parameter in model.named_parameters()}
    return [name_of[parameter] for group in optimizer.param_groups for parameter in group["params"]]
