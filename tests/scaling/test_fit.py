"""Fits of laws to points: known laws are found again, intervals hold them, and doubtful points are named."""

import json
import os
import time

import numpy as np
import pytest

from gpt2lab.errors import GPT2LabError
from gpt2lab.scaling import fit, forms, points, predict
from gpt2lab.scaling.forms import Law
from gpt2lab.scaling.points import Columns, Points
from tests.scaling.synthetic import LAW, grid, isoflops, make_points


def with_outliers(found: Points, count: int = 5, size: float = 0.05) -> tuple[Points, np.ndarray]:
    """The points with the highest losses raised, and a mask of the others."""
    good = np.ones(len(found), bool)
    good[np.argsort(found.loss)[-count:]] = False
    loss = np.where(good, found.loss, found.loss * np.exp(size))
    return Points(found.names, found.n, found.d, loss, found.flops), good


@pytest.mark.parametrize("design", [grid, isoflops])
def test_a_law_without_noise_is_found_again(design):
    found = forms.fit("approach3", *(getattr(design(), name) for name in ("n", "d", "loss")))
    assert found == pytest.approx(LAW, rel=2e-3)


def test_the_coupled_form_is_its_equation():
    E, a, b, eta = 1.7, 33.0, 58.0, 0.1
    n = np.repeat([1e7, 1e8], 4)
    d = np.tile([5, 10, 20, 80], 2) * n
    ratio, compute = d / n, 6 * n * d
    loss = E + (a * ratio**eta + b * ratio**-eta) * compute**-eta
    values = forms.fit("coupled", n, d, loss).coupled()
    assert values == pytest.approx({"E": E, "a": a, "b": b, "eta": eta}, rel=1e-2)
    assert fit.fit(Points(tuple("abcdefgh"), n, d, loss, compute), 0).approach3 is None  # two sizes


def test_the_optimum_has_the_lowest_loss_of_its_compute():
    n, d = LAW.optimum(1e21)
    assert 6 * n * d == pytest.approx(1e21)
    assert LAW.loss(n, d) < min(LAW.loss(n * 1.1, d / 1.1), LAW.loss(n / 1.1, d * 1.1))


@pytest.mark.parametrize("seed", range(4))
def test_outliers_are_named_and_do_not_move_the_fit(seed):
    damaged, good = with_outliers(isoflops(noise=0.004, seed=seed))
    found = fit.fit(damaged, 0)
    expected = forms.fit("approach3", damaged.n[good], damaged.d[good], damaged.loss[good])
    assert set(found.outliers) >= {name for name, kept in zip(damaged.names, good, strict=True) if not kept}
    assert len(found.outliers) <= 8
    assert any("outliers" in warning for warning in found.warnings)
    law = found.approach3.law
    assert abs(law.alpha - expected.alpha) < 0.005
    assert abs(law.beta - expected.beta) < 0.005
    assert abs(law.E - expected.E) < 0.02


def test_few_points_have_no_outliers():
    damaged, _ = with_outliers(grid(noise=0.001), count=1)
    assert not fit.fit(damaged, 0).outliers


def count_hits(design, noise: float, draws: int, bootstraps: int) -> dict[str, int]:
    """In how many draws the true parameter lies in its interval."""
    hits = dict.fromkeys(LAW._fields, 0)
    for seed in range(draws):
        intervals = fit.fit(design(noise=noise, seed=seed), bootstraps).approach3.interval95()
        for name, (low, high) in intervals.items():
            hits[name] += low <= getattr(LAW, name) <= high
    return hits


def test_intervals_hold_the_truth_and_are_not_endless():
    hits = count_hits(grid, noise=0.003, draws=10, bootstraps=40)
    assert min(hits.values()) >= 8
    low, high = fit.fit(grid(noise=0.003), 40).approach3.interval95()["alpha"]
    assert 0.01 < high - low < 0.15


@pytest.mark.slow
@pytest.mark.parametrize(("design", "noise"), [(grid, 0.003), (lambda **keys: grid(6, 6, **keys), 0.01)])
def test_intervals_hold_the_truth_in_90_of_100_draws(design, noise):
    """30 draws; 100, in three minutes, with FULL_TESTS=1."""
    draws = 100 if os.environ.get("FULL_TESTS") else 30
    assert min(count_hits(design, noise, draws, bootstraps=100).values()) >= 0.9 * draws


def test_the_same_points_give_the_same_intervals():
    found = grid(noise=0.003)
    assert fit.fit(found, 40).coupled.interval95() == fit.fit(found, 40).coupled.interval95()


def test_250_points_with_200_bootstraps_take_less_than_a_minute():
    began = time.process_time()
    fit.fit(isoflops(noise=0.004), 200)
    assert time.process_time() - began < 60


def test_approach_2_finds_the_exponents_of_a_symmetric_law():
    law = Law(1.7, 400.0, 0.35, 400.0, 0.35)
    found = fit.fit(isoflops(noise=0.001, law=law), 40).approach2
    assert found.a == pytest.approx(0.5, abs=0.005)
    assert found.b == pytest.approx(0.5, abs=0.005)
    assert len(found.minima) == 9
    assert all(minimum.interior for minimum in found.minima)
    assert found.minima[0].parameters == pytest.approx(law.optimum(6e18)[0], rel=0.05)
    low, high = found.interval95["a"]
    assert low <= 0.5 <= high


def test_a_minimum_at_the_edge_is_said_and_not_used():
    found = isoflops(noise=0.001)
    largest = found.flops > 2.9e21
    cut = found.select(~largest | (found.n < LAW.optimum(3e21)[0] / 1.5))
    fits = fit.fit(cut, 0)
    assert any("smallest or largest size for 3e+21" in warning for warning in fits.warnings)
    assert [minimum.interior for minimum in fits.approach2.minima] == [True] * 8 + [False]
    assert fits.approach2.a == pytest.approx(LAW.optimal_exponents()[0], abs=0.02)


def test_without_minima_inside_there_is_no_approach_2():
    fits = fit.fit(isoflops(off_centre=30.0), 0)
    assert fits.approach2 is None
    assert any("approach 2 is left out" in warning for warning in fits.warnings)


def test_what_cannot_be_determined_is_none_and_said():
    n = np.array([1e7, 1e8] * 3)
    fits = fit.fit(make_points(n, n * np.repeat([5, 20, 80], 2)), 0)
    assert fits.approach3 is None
    assert fits.best().form == "coupled"
    assert any("2 sizes" in warning for warning in fits.warnings)
    two_counts = grid(4, 2)  # the same tokens a parameter for all sizes, so each token count differs
    assert any("2 token counts" in warning for warning in fit.fit(two_counts, 0).warnings)
    same = make_points(two_counts.n, np.tile([1e9, 1e10], 4))
    assert any("2 token counts" in warning for warning in fit.fit(same, 0).warnings)
    n = np.geomspace(1e7, 1e9, 8)
    together = fit.fit(make_points(n, n**1.3), 0)  # each size with its own token count
    assert together.approach3 is None
    assert together.coupled is None
    assert any("only grow with the size" in warning for warning in together.warnings)
    with pytest.raises(GPT2LabError, match="3 sizes"):
        together.best()
    assert any("1 token count" in warning for warning in fit.fit(make_points(n, 20 * n), 0).warnings)


def test_many_points_that_are_close_to_each_other_are_many_sizes():
    n = np.geomspace(1e7, 1e9, 600)
    d = n * np.random.default_rng(0).uniform(5, 80, len(n))
    fits = fit.fit(make_points(n, d, noise=0.003), 0)
    assert fits.sizes > 100
    assert fits.best().form == "approach3"
    assert fits.approach3.law.alpha == pytest.approx(LAW.alpha, abs=0.03)


def test_a_law_without_irreducible_loss_is_said():
    fits = fit.fit(grid(law=Law(1e-6, 482.0, 0.3478, 2085.0, 0.3658)), 0)
    assert any("irreducible" in warning for warning in fits.warnings)


def test_few_points_predict_with_the_coupled_form():
    assert fit.fit(grid(3, 4), 0).best().form == "coupled"
    assert fit.fit(grid(4, 4), 0).best().form == "approach3"


def test_json_has_the_stated_keys():
    result = fit.to_json(fit.fit(grid(noise=0.002), 40), {})
    assert set(result) >= {"approach3", "approach2", "coupled", "points"}
    assert set(result["approach3"]) == {"E", "A", "alpha", "B", "beta", "interval95"}
    assert set(result["approach3"]["interval95"]) == {"E", "A", "alpha", "B", "beta"}
    assert set(result["coupled"]) == {"E", "a", "b", "eta", "interval95"}
    assert result["approach2"] is None
    assert result["points"] == 16
    assert result["optimum"]["parameters"] == pytest.approx(LAW.optimum(result["optimum"]["flops"])[0], rel=0.3)
    for name, (low, high) in result["approach3"]["interval95"].items():
        assert low <= result["approach3"][name] <= high


def test_olmo_ladder_predicts_larger_models(shared_data):
    path = shared_data / "scaling" / "olmo_ladder.csv"
    if not path.exists():
        pytest.skip("no shared data about scaling")
    every = points.read([str(path)], Columns("parameters_non_embedding", "tokens", "loss_c4_en"), "all")
    every = every.select(every.d >= 19.9 * every.n)  # 1 to 10 times 20 tokens a parameter
    fits = fit.fit(every.select(every.n < 8e8), 40)
    larger = every.select(every.n > 8e8)
    assert len(larger) == 8
    for n, d, loss in zip(larger.n, larger.d, larger.loss, strict=True):
        prediction = predict.predict(fits, n, d)
        assert abs(prediction.loss / loss - 1) < 0.015
        low, high = prediction.interval95
        assert low < loss < high
        assert high - low < 0.1 * loss


@pytest.mark.filterwarnings("error::RuntimeWarning")
@pytest.mark.parametrize("falls", ["n", "d", "neither"])
def test_points_that_do_not_determine_the_law_give_finite_numbers(falls):
    """As while a scaling run is under way: the loss of the first points may not fall with size, or with tokens."""
    found = grid(3, 3)
    by = {"n": found.n, "d": found.d, "neither": np.ones(9)}[falls]
    noise = np.exp(np.random.default_rng(0).normal(0, 0.01, 9))
    points_ = Points(found.names, found.n, found.d, 2 + 100 * by**-0.3 * noise, found.flops)
    fits = fit.fit(points_, 20)
    for form in (fits.approach3, fits.coupled):
        laws = (form.law, *form.draws)
        assert np.isfinite([law.optimum(flops) for law in laws for flops in (1e15, 1e25)]).all()
        assert np.isfinite([*form.interval95().values()]).all()
    json.dumps(fit.to_json(fits, {}), allow_nan=False)
