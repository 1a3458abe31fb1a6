"""Plans, recommendations and predictions: runs with the stated compute, on both sides of the optimum, that train."""

import datetime
import json
import math

import numpy as np
import pytest

from gpt2lab import config as settings
from gpt2lab.config import SIZES, Config
from gpt2lab.errors import GPT2LabError
from gpt2lab.model import flops
from gpt2lab.scaling import design, family, fit, points, predict, recommend, table
from gpt2lab.scaling.forms import Law
from tests.scaling.synthetic import LAW, grid, write_run, write_sweep

SMALL = Config.model_validate(
    {
        "model": {"n_layer": 4, "n_head": 4, "n_embd": 128, "block_size": 64, "vocab_size": 512},
        "train": {"max_steps": 600, "total_batch_size": 1536},
        "optimizer": {"max_lr": 5e-3, "min_lr": 5e-4, "warmup_steps": 20},
    }
)


def test_a_plan_has_sizes_around_the_optimum_of_each_compute():
    designs, warnings = design.plan(SMALL, (1e14, 1e16), 12, "blocks-and-head", None, 20.0)
    assert not warnings
    assert len(designs) == 12
    assert len({design.name_run(run) for run in designs}) == 12
    for index, compute in enumerate((1e14, 1e15, 1e16)):
        runs = designs[4 * index : 4 * index + 4]
        assert all(abs(run.flops / compute - 1) < 0.05 for run in runs)
        sizes = [run.parameters for run in runs]
        assert sizes == sorted(set(sizes))
        assert sizes[1] < math.sqrt(compute / 120) * 1.5
        assert sizes[0] < math.sqrt(compute / 120) < sizes[-1]


def test_runs_of_a_plan_determine_approach_2_and_3():
    """A law whose optimum is where the plan expects it is found again from the plan's runs."""
    law = Law(1.7, 20.0, 0.3, 20.0 * 20**0.3, 0.3)  # 20 tokens a parameter
    designs, _ = design.plan(SMALL, (1e14, 1e16), 16, "blocks-and-head", None, 20.0)
    n, d, compute = (
        np.array([getattr(run, key) for run in designs], float) for key in ("parameters", "tokens", "flops")
    )
    fits = fit.fit(points.Points(tuple(map(design.name_run, designs)), n, d, law.loss(n, d), compute), 0)
    assert all(minimum.interior for minimum in fits.approach2.minima)
    assert len(fits.approach2.minima) == 4
    assert fits.approach3.law.alpha == pytest.approx(0.3, rel=0.02)


def test_a_plan_is_centred_on_the_optimum_of_earlier_runs():
    near, _ = design.plan(SMALL, (1e15, 1e16), 9, "all", None, 20.0)
    fitted, _ = design.plan(SMALL, (1e15, 1e16), 9, "all", Law(1.7, 400, 0.3, 40, 0.3), 20.0)
    assert fitted[1].parameters > 2 * near[1].parameters


def test_a_plan_says_what_is_wrong_with_it():
    wide = SMALL.model_copy(update={"model": SMALL.model.model_copy(update={"vocab_size": 50257})})
    _, warnings = design.plan(wide, (1e13, 1e14), 9, "blocks-and-head", None, 20.0)
    assert any("below the smallest" in warning for warning in warnings)
    _, warnings = design.plan(SMALL, (1e11, 1e14), 9, "blocks-and-head", None, 20.0)
    assert any("steps" in warning for warning in warnings)
    with pytest.raises(GPT2LabError, match="--flops"):
        design.plan(SMALL, (1e14, 1e14), 9, "all", None, 20.0)


def test_time_is_compute_by_speed():
    designs, _ = design.plan(SMALL, (1e14, 1e15), 9, "all", None, 20.0)
    plan = design.to_json(designs, [], 1e12)
    assert plan["seconds"] == pytest.approx(sum(run["flops"] for run in plan["runs"]) / 1e12)
    assert "settings" in plan["runs"][0]
    assert "one after another" in table.format_plan(plan)
    assert "--speed" in table.format_plan(design.to_json(designs, [], None))


def test_rate_batch_and_warmup_follow_the_rule():
    model = SMALL.model.model_copy(update={"n_layer": 8, "n_head": 8, "n_embd": 256})
    tokens = 600 * 1536
    same = family.scale(SMALL, SMALL.model, tokens, "all").config
    assert same.train.total_batch_size == 1536
    assert same.train.max_steps == 600
    assert same.optimizer == SMALL.optimizer
    wide = family.scale(SMALL, model, tokens, "all").config
    assert wide.optimizer.max_lr == pytest.approx(2.5e-3)
    assert wide.optimizer.min_lr == pytest.approx(2.5e-4)
    longer = family.scale(SMALL, SMALL.model, tokens * 2 ** (2 / family.BATCH_EXPONENT), "all").config
    assert longer.train.total_batch_size == 4 * 1536
    assert longer.optimizer.max_lr == pytest.approx(1e-2)
    assert longer.optimizer.warmup_steps == pytest.approx(longer.train.max_steps / 30, abs=1)


def test_narrow_models_have_a_higher_rate_up_to_a_limit():
    def rate(n_embd, batch_growth=1.0, **optimizer):
        model = SMALL.model.model_copy(update={"n_embd": n_embd})
        changed = SMALL.optimizer.model_copy(update=optimizer)
        return family.scale_rates(changed, model, SMALL.model.n_embd / n_embd, batch_growth)

    assert rate(64)["max_lr"] == pytest.approx(1e-2)
    assert rate(16)["max_lr"] == family.HIGHEST_ADAMW_LR
    assert rate(16)["min_lr"] == pytest.approx(family.HIGHEST_ADAMW_LR / 10)
    assert rate(16, max_lr=3e-2)["max_lr"] == 3e-2
    assert rate(256, 4.0)["max_lr"] == pytest.approx(5e-3)


def test_of_the_rates_with_muon_only_that_of_the_head_depends_on_the_width():
    muon = SMALL.optimizer.model_copy(update={"name": "muon", "max_lr": 0.02, "min_lr": 0.0, "head_lr": 4e-3})
    modern = SMALL.model.model_copy(update={"architecture": "modern", "tie_word_embeddings": False})
    wide = family.scale_rates(muon, modern, 1 / 4, 1.0)
    assert wide == {"max_lr": 0.02, "min_lr": 0.0, "embedding_lr": None, "head_lr": 1e-3}
    longer = family.scale_rates(muon, modern, 1.0, 4.0)
    assert longer == {"max_lr": 0.04, "min_lr": 0.0, "embedding_lr": None, "head_lr": 8e-3}
    unset = family.scale_rates(muon.model_copy(update={"head_lr": None}), modern, 1 / 4, 1.0)
    assert unset["head_lr"] == 5e-3
    tied = family.scale_rates(muon.model_copy(update={"head_lr": None}), SMALL.model, 1 / 4, 1.0)
    assert tied["head_lr"] is None


def test_the_modern_architecture_is_planned_and_recommended(tmp_path):
    recipe = Config.model_validate(
        {
            "model": {"architecture": "modern", "n_layer": 4, "n_head": 4, "n_embd": 128, "block_size": 64},
            "train": {"max_steps": 600, "total_batch_size": 1536},
            "optimizer": {"name": "muon", "max_lr": 0.02, "min_lr": 0, "embedding_lr": 0.3, "warmup_steps": 20},
        }
    )
    designs, _ = design.plan(recipe, (1e14, 1e15), 9, "blocks-and-head", None, 1.0)
    assert {run.config.model.architecture for run in designs} == {"modern"}
    for run in designs:
        assert run.flops == flops.flops_per_token(run.config.model) * run.tokens
        changed = {key: "null" if value is None else value for key, value in design.changed_settings(run).items()}
        base = {f"{s}.{k}": v for s, values in recipe.model_dump(exclude_unset=True).items() for k, v in values.items()}
        loaded = settings.load([], base | changed)
        assert (loaded.model, loaded.optimizer) == (run.config.model, run.config.optimizer)
    chosen, _ = recommend.recommend(recipe, 1e17, recommend.CHINCHILLA, "blocks-and-head")
    path = tmp_path / "larger.yaml"
    path.write_text(recommend.write_recipe(chosen, "small", []))
    loaded = settings.load([path])
    assert loaded.model.architecture == "modern"
    assert loaded.optimizer == chosen.config.optimizer
    assert loaded.optimizer.head_lr < loaded.optimizer.max_lr  # wider than the recipe


def test_the_family_has_the_published_sizes_and_keeps_the_shape():
    recipe = settings.load(["gpt2_124m"])
    models = list(family.list_models(recipe.model))
    shapes = {(model.n_layer, model.n_head, model.n_embd): model.size for model in models}
    assert {shapes[shape] for shape in SIZES.values()} == set(SIZES)
    assert all(model.n_embd // model.n_head == 64 and model.vocab_size == recipe.model.vocab_size for model in models)


def test_more_compute_than_the_largest_model_of_the_family_needs_is_refused():
    with pytest.raises(GPT2LabError, match="larger model than the recipe's family has"):
        recommend.recommend(SMALL, 1e40, recommend.CHINCHILLA, "blocks-and-head")


def test_a_law_is_not_used_at_another_ratio_than_that_of_its_runs():
    recipe, compute = settings.load(["gpt2_124m"]), 1e19
    free, warnings = recommend.recommend(recipe, compute, recommend.CHINCHILLA, "blocks-and-head")
    assert not warnings
    ratio = free.tokens / free.parameters
    same, warnings = recommend.recommend(recipe, compute, recommend.CHINCHILLA, "blocks-and-head", (1, 2 * ratio))
    assert same == free
    assert not warnings
    limited, (warning,) = recommend.recommend(
        recipe, compute, recommend.CHINCHILLA, "blocks-and-head", (ratio / 20, ratio / 3)
    )
    assert ratio / 6 < limited.tokens / limited.parameters <= ratio / 3 * 1.02
    assert f"the law's optimum has {ratio:.3g} tokens a parameter" in warning


def test_the_family_has_no_shallow_and_no_narrow_models_unless_the_recipe_is_one():
    def smallest(**shape):
        model = SMALL.model.model_copy(update={"n_head": 4, "n_embd": 64, **shape})
        models = list(family.list_models(model))
        return min(model.n_layer for model in models), min(model.n_embd for model in models)

    assert smallest(n_layer=2) == (2, 32)
    assert smallest(n_layer=1) == (1, 32)
    assert smallest(n_layer=2, n_head=1, n_embd=16) == (2, 16)


@pytest.mark.parametrize("name", ["gpt2_124m", "quickstart"])
def test_a_recommended_recipe_is_near_the_optimum_and_loads(name, tmp_path):
    recipe, compute = settings.load([name]), 1e19
    chosen, _ = recommend.recommend(recipe, compute, recommend.CHINCHILLA, "blocks-and-head")
    assert chosen.flops == pytest.approx(compute, rel=0.02)
    best = recommend.CHINCHILLA.loss(*recommend.CHINCHILLA.optimum(compute))
    assert recommend.CHINCHILLA.loss(chosen.parameters, chosen.tokens) < best * 1.01
    path = tmp_path / "larger.yaml"
    path.write_text(recommend.write_recipe(chosen, name, ["Predicted."]))
    loaded = settings.load([path])
    assert loaded.run.name == "larger"
    assert loaded.model.model_dump(exclude={"size"}) == chosen.config.model.model_dump(exclude={"size"})
    assert (loaded.train, loaded.optimizer, loaded.data) == (chosen.config.train, chosen.config.optimizer, recipe.data)
    assert loaded.batch_plan(2, 16384).grad_accum_steps >= 1
    assert flops.flops_per_token(loaded.model) * chosen.tokens == pytest.approx(chosen.flops)


def test_gpu_hours_are_flops():
    assert recommend.flops_of_gpu_hours(2, "a100", 0.5) == pytest.approx(2 * 3600 * 312e12 * 0.5)
    with pytest.raises(GPT2LabError, match="did you mean h100"):
        recommend.flops_of_gpu_hours(2, "H10", 0.5)


def test_a_prediction_holds_the_truth_and_says_when_it_is_far():
    fits = fit.fit(grid(noise=0.003), 40)
    near = predict.predict(fits, 2e9, 4e10)
    low, high = near.interval95
    assert low < LAW.loss(2e9, 4e10) < high
    assert low < near.loss < high < 1.2 * low
    assert not any("times the compute" in warning for warning in near.warnings)
    far = predict.predict(fits, 1e12, 1e13)
    assert any("times the compute" in warning for warning in far.warnings)
    assert far.interval95[1] / far.interval95[0] > high / low


@pytest.mark.slow
@pytest.mark.slow
def test_the_interval_has_the_noise_of_a_run_in_it():
    noise, draws = 0.01, 30
    held = 0
    for seed in range(draws):
        fits = fit.fit(grid(noise=noise, seed=seed), 40)
        low, high = predict.predict(fits, 3e8, 6e9).interval95
        held += low < LAW.loss(3e8, 6e9) * math.exp(np.random.default_rng(100 + seed).normal(0, noise)) < high
    assert held >= 0.85 * draws


def test_a_prediction_is_recorded_with_its_date_before_the_run(tmp_path):
    sweep = write_sweep(tmp_path / "sweep")
    prediction = predict.predict(fit.fit(points.read([str(sweep)], points.Columns(), "all"), 40), 1e6, 1e8)
    first = predict.record(sweep, prediction, "larger", "all")
    assert first["before"]
    write_run(sweep / "larger", 128, 20000)
    assert not predict.record(sweep, prediction, "larger", "all")["before"]
    lines = [json.loads(line) for line in (sweep / points.PREDICTIONS).read_text().splitlines()]
    assert [line["before"] for line in lines] == [True, False]
    assert lines[0]["loss"] == prediction.loss
    age = datetime.datetime.now(datetime.UTC) - datetime.datetime.fromisoformat(lines[0]["date"])
    assert age.total_seconds() < 60
