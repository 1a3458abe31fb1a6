"""The `scaling` command: plan, run, fit, predict, recommend."""

import dataclasses
import json
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from gpt2lab import config as settings
from gpt2lab import files, logs, outputs
from gpt2lab.config import Config
from gpt2lab.errors import GPT2LabError
from gpt2lab.formatting import plural
from gpt2lab.scaling import design, fit, page, points, predict, recommend, table
from gpt2lab.scaling.fit import Fits
from gpt2lab.scaling.options import ScalingOptions
from gpt2lab.scaling.points import Columns
from gpt2lab.sweep import grid
from gpt2lab.sweep import run as sweep_run

logger = logging.getLogger(__name__)


def run(options: ScalingOptions) -> None:
    """Run the action of the command, and print its result.

    Args:
        options: the action and its options.
    """
    if options.action == "run":
        _run(options)
        return
    actions = {"plan": _plan, "fit": _fit, "predict": _predict, "recommend": _recommend}
    result, text = actions[options.action](options)
    for warning in result["warnings"]:
        logger.warning("%s", warning)
    logs.print_result(json.dumps(result, indent=2) if options.as_json else text)


def _read(options: ScalingOptions) -> points.Points:
    return points.read(options.sources, Columns(options.n, options.d, options.loss), options.counted)


def _read_fits(options: ScalingOptions) -> Fits:
    return fit.fit(_read(options), options.bootstraps)


def _load_recipe(options: ScalingOptions) -> Config:
    return settings.load(options.config or [options.RECIPE], options.overrides)


def _fit(options: ScalingOptions) -> tuple[dict[str, Any], str]:
    found = _read(options)
    fits = fit.fit(found, options.bootstraps)
    if not (fits.approach3 or fits.coupled or fits.approach2):
        for warning in found.warnings:
            logger.warning("%s", warning)
        reasons = [warning for warning in fits.warnings if warning not in found.warnings]
        raise GPT2LabError(f"no form can be fitted to {plural(len(found), 'point')}: {'; '.join(reasons)}")
    result = fit.to_json(fits, fit.fit_counts(found))
    return result, table.format_fit(result, options.counted if found.counts else "as in the CSV")


def _predict(options: ScalingOptions) -> tuple[dict[str, Any], str]:
    parameters, tokens, name = options.parameters, options.tokens, None
    if options.config and parameters is None and tokens is None:
        recipe = _load_recipe(options)
        parameters, name = points.count_parameters(recipe)[options.counted], recipe.run.name
        tokens = recipe.train.max_steps * recipe.train.total_batch_size
    elif options.config or parameters is None or tokens is None:
        raise GPT2LabError("predict takes --parameters and --tokens, or a recipe with --config")
    prediction = predict.predict(_read_fits(options), parameters, tokens)
    result = dataclasses.asdict(prediction)
    sweep = points.find_sweep(options.sources)
    if sweep:
        recorded = predict.record(sweep, prediction, name, options.counted)
        result |= {"run": name, "date": recorded["date"], "recorded": str(sweep / points.PREDICTIONS)}
        if not recorded["before"]:
            result["warnings"] = [*prediction.warnings, f"{name} had already started when this was predicted"]
    return result, table.format_prediction(result)


def _plan(options: ScalingOptions) -> tuple[dict[str, Any], str]:
    if options.flops is None or len(options.flops) != 2:
        raise GPT2LabError("plan needs the range of FLOPs of its runs, such as --flops 1e13:1e15")
    if options.out:
        outputs.require_replaceable("--out", Path(options.out), design.is_plan_file, "a plan")
    earlier = _read(options) if options.sources else None
    law = fit.fit(earlier, 0).best().law if earlier else None
    budget = options.flops[0], options.flops[1]
    recipe = _load_recipe(options)
    _require_law([recipe])
    runs, warnings = design.plan(recipe, budget, options.runs, options.counted, law, options.tokens_per_parameter)
    speed = options.speed or (earlier.speed if earlier else None)
    origin = {"config": list(options.config or [options.RECIPE]), "overrides": options.overrides}
    result = origin | design.to_json(runs, warnings, speed)
    if options.out:
        with files.atomic_write(options.out) as temporary:
            temporary.write_text(json.dumps(result, indent=2) + "\n")
    return result, table.format_plan(result)


def _run(options: ScalingOptions) -> None:
    if len(options.sources) != 1 or options.config:
        raise GPT2LabError("run takes the file of a plan, which has the recipe: gpt2lab scaling run plan.json")
    path = options.sources[0]
    plan = design.read(path)
    runs = {run["name"]: {key: _as_text(value) for key, value in run["settings"].items()} for run in plan["runs"]}
    if len(runs) < len(plan["runs"]):
        raise GPT2LabError(f"{path}: two runs have the same name")
    if clash := [name for name in options.overrides if any(name in own for own in runs.values())]:
        raise GPT2LabError(f"--{clash[0]}: the plan sets it for each run")
    overrides = {key: _as_text(value) for key, value in plan["overrides"].items()} | options.overrides
    sweep = grid.build(plan["config"], overrides, runs, Path(path).stem, path)
    _require_law(run.config for run in sweep.runs)
    sweep_run.start(sweep, page.write, options.only_print)


def _require_law(configs: Iterable[Config]) -> None:
    """Refuse runs that give no law, which would be noticed only after they have trained."""
    configs = list(configs)
    if any(config.train.init_from for config in configs):
        raise GPT2LabError(
            "train.init_from is set: the runs would have the size of its weights, and a law needs several; leave it out"
        )
    if any(config.train.eval_every == 0 for config in configs):
        raise GPT2LabError(
            "train.eval_every is 0, so the runs would have no validation loss, which a law is fitted to; set it to 250 "
            "for instance"
        )


def _as_text(value: Any) -> str:
    """A value of a setting as on the command line."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _recommend(options: ScalingOptions) -> tuple[dict[str, Any], str]:
    compute = _find_compute(options)
    if options.out:
        is_own = outputs.begins_with(recommend.FIRST_LINE)
        outputs.require_replaceable("--out", Path(options.out), is_own, "a recommended recipe")
    recipe = _load_recipe(options)
    fits = _read_fits(options) if options.sources else None
    if fits:
        ratios = fits.points.d / fits.points.n
        trusted = float(ratios.min()), float(ratios.max())
        chosen, warnings = recommend.recommend(recipe, compute, fits.best().law, options.counted, trusted)
    else:
        chosen, warnings = recommend.recommend(recipe, compute, recommend.CHINCHILLA, options.counted)
    prediction = predict.predict(fits, chosen.parameters, chosen.tokens) if fits else None
    if prediction:
        low, high = prediction.interval95
        comments = [f"Predicted final loss: {prediction.loss:.3f} ({low:.3f} to {high:.3f}), by {prediction.form}."]
    else:
        comments = [
            "Size and tokens: Besiroglu et al. 2024, fitted to Chinchilla's points; on other data it is a guess."
        ]
    origin = ", ".join(options.config or [options.RECIPE])
    text = recommend.write_recipe(chosen, origin, comments)
    if options.out:
        path = Path(options.out)
        with files.atomic_write(path) as temporary:
            temporary.write_text(text)
        text = f"wrote {path}; start it with: gpt2lab train --config {path}"
    result = {
        "parameters": chosen.parameters,
        "tokens": chosen.tokens,
        "flops": chosen.flops,
        "settings": design.changed_settings(chosen),
        "loss": prediction.loss if prediction else None,
        "interval95": prediction.interval95 if prediction else None,
        "recipe": options.out,
        "warnings": [*warnings, *(prediction.warnings if prediction else ())],
    }
    return result, text


def _find_compute(options: ScalingOptions) -> float:
    if options.flops is not None and options.gpu_hours is None and options.gpu is None and len(options.flops) == 1:
        return options.flops[0]
    if options.flops is None and options.gpu_hours and options.gpu:
        return recommend.flops_of_gpu_hours(options.gpu_hours, options.gpu, options.mfu)
    if options.flops is None and options.gpu_hours and not options.gpu:
        raise GPT2LabError(f"--gpu-hours needs --gpu, such as --gpu-hours {options.gpu_hours:g} --gpu A100")
    raise GPT2LabError("recommend takes one number, --flops 1e18, or --gpu-hours 100 --gpu A100")
