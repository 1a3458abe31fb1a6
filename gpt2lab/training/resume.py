"""What may change when a run resumes from a checkpoint, and what must be as it was."""

from collections.abc import Mapping
from typing import Any

from gpt2lab.config import RENAMED_SETTINGS, Config, GPT2Config
from gpt2lab.errors import GPT2LabError
from gpt2lab.model.names import WEIGHTS_ONLY
from gpt2lab.training.checkpoint import Checkpoint
from gpt2lab.training.schedule import constant_steps, learning_rate

RESUME_MUTABLE = "train.max_steps"  # may change, and changes the learning rate of the steps to come
# Must be those of the checkpoint: with another value a run would train something else.
RESUME_FROZEN = (
    *(f"model.{field}" for field in GPT2Config.model_fields if field != "size"),  # sets others of them
    "train.total_batch_size",
    "train.overfit_batch",
    "run.seed",
)
# May change without a message: they do not affect what is learned. A change of any other setting is logged.
RESUME_IGNORED = (
    "run.",
    "data.",
    "checkpoint.",
    "tracking.",
    "system.compile",
    "system.shard",
    "system.activation",
    "system.profile",
    "system.start_timeout",
    "system.timeout",
    "train.eval",
    "train.hellaswag",
    "train.sample",
    "train.micro",
    "model.size",
)


def changed_settings(start: Checkpoint, config: Config, data_digest: str | None, own: bool) -> dict[str, str]:
    """Compare the settings with those of the checkpoint that the run resumes from.

    Args:
        start: the checkpoint.
        config: the settings now.
        data_digest: of both splits now; None: they are not there to be compared.
        own: whether the checkpoint is one of this run, not of another one that `run.resume` names.

    Returns:
        The settings that changed and matter for the result, by dotted name: "changed from 0.2 to 0.1".

    Raises:
        GPT2LabError: one of RESUME_FROZEN changed, or the data; or a new run branches off where the linear schedule
            of either run lowers the learning rate.
    """
    recorded = start.state["fingerprint"]["settings"].items()
    # A setting that is newer than the checkpoint has a default that is what was done before.
    saved = Config().flat() | {RENAMED_SETTINGS.get(name, name): value for name, value in recorded}
    current = config.flat()
    for name in RESUME_FROZEN:
        if saved.get(name) != current[name]:
            raise GPT2LabError(
                f"{start.path} was trained with {name} {saved.get(name)}, this start says {current[name]}; "
                + ("set it back, or set another run.name to start again" if own else "set it to the same value")
            )
    if data_digest not in (None, start.state["fingerprint"]["data"]):
        raise GPT2LabError(_describe_other_data(start, saved, current, own))
    if not own:
        _require_constant_rate(start, saved, current)
    changed = {
        name: f"changed from {saved.get(name)} to {value}"
        for name, value in current.items()
        if value != saved.get(name) and not name.startswith(RESUME_IGNORED)
    }
    if RESUME_MUTABLE in changed:
        steps = (int(saved[RESUME_MUTABLE]), config.train.max_steps)
        old, new = (learning_rate(min(start.step + 1, end), end, config.optimizer) for end in steps)
        changed[RESUME_MUTABLE] += f", the learning rate of the next step from {old:.1e} to {new:.1e}"
    return changed


def _describe_other_data(start: Checkpoint, saved: Mapping[str, Any], current: Mapping[str, Any], own: bool) -> str:
    """The message about data that are not those of the checkpoint: the settings that differ, or what has changed."""
    names = [name for name in ("data.source", "data.input", "data.dir") if saved.get(name) != current[name]]
    if current["data.dir"] is not None and "data.dir" not in names:
        names = []  # the same folder, whatever else was said about it
    if names:
        before, now = (
            ", ".join(f"no {name}" if settings.get(name) is None else f"{name} {settings[name]}" for name in names)
            for settings in (saved, current)
        )
        reason, advice = f"({before}) than this start names ({now})", f"set {' and '.join(names)} back"
    else:
        place = current["data.input"] or current["data.dir"] or f"the data of {current['data.source']}"
        reason, advice = f"than there are now: {place} has changed since", "restore it"
    advice = f"{advice}, or set another run.name to start again" if own else f"use its data. {WEIGHTS_ONLY}"
    return f"{start.path} was trained on other data {reason}; {advice.format(start.path)}"


def _require_constant_rate(start: Checkpoint, saved: Mapping[str, Any], current: Mapping[str, Any]) -> None:
    """Check that a branch begins before the learning rate falls, in the run that it leaves and in its own schedule."""
    for settings, whose in ((saved, "that run"), (current, "this run")):
        if settings["optimizer.schedule"] != "linear":
            continue
        last = constant_steps(settings["train.max_steps"], settings["optimizer.decay_fraction"])
        if start.step > last:
            own = "branch off one of its checkpoints up to there"
            advice = own if settings is saved else "raise train.max_steps or lower optimizer.decay_fraction"
            raise GPT2LabError(
                f"run.resume: {start.path} is at step {start.step}, but the learning rate of {whose} falls after step "
                f"{last}; {advice}"
            )
