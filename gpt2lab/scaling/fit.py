"""Fits all forms to points: outliers, bootstrap intervals, residuals, and what must not be trusted.

Points ──▶ outliers left out ──▶ approach 3, coupled form, approach 2, each with a bootstrap ──▶ Fits
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from gpt2lab import progress
from gpt2lab.errors import GPT2LabError
from gpt2lab.formatting import plural
from gpt2lab.scaling import forms, isoflops
from gpt2lab.scaling.forms import UNKNOWNS, Array, Form, Law
from gpt2lab.scaling.points import Points

_SEED = 1  # of the bootstrap: the same points give the same intervals
_SAME = 0.02  # sizes or token counts whose logarithms differ by at most this are one
_MANY = 30  # points from which on outliers can be told from noise
_OUTLIER = 5.0  # robust standard deviations of log L
_FREE_FORM = (4, 4, 16)  # sizes, token counts and points from which on approach 3 predicts; below, the coupled form
_TOGETHER = 0.1  # standard deviation of log D at a given N below which N and D grow together


@dataclass(frozen=True)
class FormFit:
    """One form.

    Attributes:
        form: of the loss.
        law: its parameters.
        draws: the laws of the bootstrap.
        residuals: observed minus fitted log L, (points,).
        lowest_loss: of the points.
    """

    form: Form
    law: Law
    draws: tuple[Law, ...]
    residuals: Array
    lowest_loss: float

    def noise(self) -> Array:
        """The residuals, as large as the noise that they come from: (points,)."""
        return self.residuals * _inflation(len(self.residuals), UNKNOWNS[self.form])

    def interval95(self) -> dict[str, tuple[float, float]]:
        """The 95% interval of each parameter alone; empty without a bootstrap.

        It covers the percentile and the basic interval of the bootstrap, because each is too short where the form is
        curved. The basic one is taken for the logarithms of factors and exponents, and for E up to the lowest loss.
        """
        intervals = {}
        draws = [draw.values(self.form) for draw in self.draws]
        for name, value in self.law.values(self.form).items() if draws else ():
            low, high = np.percentile([draw[name] for draw in draws], [2.5, 97.5], method="weibull")
            if name == "E":
                basic = max(0.0, 2 * value - high), min(2 * value - low, self.lowest_loss)
            else:
                basic = value * (value / high), value * (value / low)
            intervals[name] = float(min(low, basic[0])), float(max(high, basic[1]))
        return intervals


@dataclass(frozen=True)
class Fits:
    """Everything that is fitted to points.

    Attributes:
        points: those that were fitted.
        outliers: names of the points that were left out.
        approach3: None if it cannot be fitted; so are the others.
        coupled: the coupled form.
        approach2: the parabolas.
        sizes: number of distinct sizes.
        token_counts: number of distinct token counts.
        warnings: what must not be trusted.
    """

    points: Points
    outliers: tuple[str, ...]
    approach3: FormFit | None
    coupled: FormFit | None
    approach2: isoflops.Approach2 | None
    sizes: int
    token_counts: int
    warnings: tuple[str, ...]

    def best(self) -> FormFit:
        """The form to predict with: approach 3 with enough sizes and token counts, or else the coupled form.

        Raises:
            GPT2LabError: neither can be fitted.
        """
        enough = all(
            have >= need
            for have, need in zip((self.sizes, self.token_counts, len(self.points)), _FREE_FORM, strict=True)
        )
        chosen = self.approach3 if enough and self.approach3 else self.coupled or self.approach3
        if chosen is None:
            raise GPT2LabError("no form can be fitted: train runs of at least 3 sizes with 3 token counts each")
        return chosen


@progress.show_as("fitting the forms", announce=True)
def fit(points: Points, draws: int = 200) -> Fits:
    """Fit all forms.

    Args:
        points: of runs.
        draws: of the bootstrap; 0: no intervals.

    Returns:
        The fits.
    """
    kept = _find_inliers(points)
    outliers = tuple(name for name, keep in zip(points.names, kept, strict=True) if not keep)
    used = points.select(kept)
    rng = np.random.default_rng(_SEED)
    approach3 = _fit_form("approach3", used, draws, rng)
    coupled = _fit_form("coupled", used, draws, rng)
    approach2 = isoflops.fit(used, draws, rng)
    sizes, token_counts = _count_design(used)
    warnings = [*points.warnings, *_warn_about_design(used, approach2, sizes, token_counts)]
    warnings += _warn_about_fit(approach3, used)
    if outliers:
        warnings.append(f"left out as outliers, more than {_OUTLIER:g} deviations from the fit: {', '.join(outliers)}")
    return Fits(used, outliers, approach3, coupled, approach2, sizes, token_counts, tuple(warnings))


@progress.show_as("fitting with other counts of N", announce=True)
def fit_counts(points: Points) -> dict[str, Law | None]:
    """Fit approach 3 with N counted in each way that the points know, without intervals.

    Args:
        points: of runs; those of a CSV know one way only, and give an empty result.

    Returns:
        The law by way of counting; None if it cannot be fitted.
    """
    fits = {way: _fit_form("approach3", points.count_as(way), 0, np.random.default_rng(_SEED)) for way in points.counts}
    return {way: found.law if found else None for way, found in fits.items()}


def _count_distinct(values: Array) -> int:
    """Number of values, where those within 2% above another one count as equal to it."""
    count, begin = 0, -np.inf
    for value in np.sort(np.log(values)):
        if value > begin + _SAME:
            count, begin = count + 1, value
    return count


def _count_design(points: Points) -> tuple[int, int]:
    """Number of sizes, and of token counts: the same for all sizes, or the same in tokens a parameter."""
    counts = min(_count_distinct(points.d), _count_distinct(points.d / points.n))
    return _count_distinct(points.n), counts


def _is_identified(form: Form, points: Points) -> bool:
    """Whether the points determine all unknowns of a form."""
    if len(points) <= UNKNOWNS[form]:
        return False
    if min(_count_design(points)) < (3 if form == "approach3" else 2):
        return False
    x, y = (np.log(values) - np.log(values).mean() for values in (points.n, points.d))
    return float(np.std(y - x * (x @ y) / (x @ x))) >= _TOGETHER


def _fit_form(form: Form, points: Points, draws: int, rng: np.random.Generator) -> FormFit | None:
    if not _is_identified(form, points):
        return None
    law = forms.fit(form, points.n, points.d, points.loss)
    fitted = law.loss(points.n, points.d)
    residuals = np.log(points.loss / fitted)
    found = FormFit(form, law, (), residuals, float(points.loss.min()))
    laws = []
    for _ in progress.track(
        range(draws), "bootstrapping approach 3" if form == "approach3" else "bootstrapping the coupled form"
    ):
        noise = rng.choice(found.noise(), len(points)) * rng.choice([-1.0, 1.0], len(points))
        laws.append(forms.fit(form, points.n, points.d, fitted * np.exp(noise), start=law))
    return dataclasses.replace(found, draws=tuple(laws))


def _inflation(count: int, unknowns: int) -> float:
    """By how much residuals of a fit are smaller than the noise, and by how much few of them misjudge it.

    The first factor is larger than that of least squares, sqrt(n / (n - p)), because a fit by absolute values passes
    through p of the points. The second is the ratio of the t and the normal distribution at 97.5%. With both,
    intervals from 9 to 250 points cover the truth as often as they say (docs/scaling.md).
    """
    from scipy import stats

    freedom = count - unknowns
    return float(count / freedom * stats.t.ppf(0.975, freedom) / stats.norm.ppf(0.975))


def _find_inliers(points: Points) -> "np.ndarray":
    """Mask of the points that are no outliers. Few points have none: they cannot be told from noise."""
    kept = np.ones(len(points), bool)
    if len(points) < _MANY or not _is_identified("approach3", points):
        return kept
    for _ in range(5):  # the fit without the outliers may show others
        law = forms.fit("approach3", points.n[kept], points.d[kept], points.loss[kept])
        deviations = np.abs(np.log(points.loss / law.loss(points.n, points.d)))
        scale = 1.4826 * np.median(deviations[kept])  # of the normal distribution with this median deviation
        before, kept = kept, deviations <= max(_OUTLIER * scale, forms.DELTA)
        if (before == kept).all():
            break
    return kept


def _warn_about_design(
    points: Points, approach2: isoflops.Approach2 | None, sizes: int, token_counts: int
) -> list[str]:
    warnings = []
    if min(sizes, token_counts) < 3:
        warnings.append(
            f"{plural(sizes, 'size')} and {plural(token_counts, 'token count')}: at least 3 of each are needed, "
            "better 4"
        )
    elif not _is_identified("approach3", points):
        warnings.append("approach 3 is not determined: too few points, or tokens that only grow with the size")
    edges = [f"{minimum.flops:.2g}" for minimum in (approach2.minima if approach2 else ()) if not minimum.interior]
    if edges:
        warnings.append(
            f"the lowest loss is at the smallest or largest size for {', '.join(edges)} FLOPs: add sizes there"
        )
    groups = isoflops.group_by_compute(points.flops)
    if approach2 is None and groups:
        warnings.append("approach 2 is left out: fewer than two computes have a minimum between their sizes")
    return warnings


def _warn_about_fit(found: FormFit | None, points: Points) -> list[str]:
    if found is None:
        return []
    warnings = []
    if points.loss.min() > 50 * found.law.E:
        warnings.append("approach 3 finds no irreducible loss E: the runs are too small to see it")
    for name, (low, high) in found.interval95().items():
        if name in ("alpha", "beta") and high > 2 * low:
            warnings.append(f"approach 3: {name} is between {low:.2g} and {high:.2g}: the points hardly determine it")
    return warnings


def to_json(fits: Fits, counts: Mapping[str, Law | None]) -> dict[str, Any]:
    """The result as `gpt2lab scaling fit --json` prints it.

    Args:
        fits: to the points.
        counts: approach 3 by way of counting N.

    Returns:
        A JSON object; forms that cannot be fitted are null.
    """

    def describe(found: FormFit | None) -> dict[str, Any] | None:
        return None if found is None else {**found.law.values(found.form), "interval95": found.interval95()}

    two = fits.approach2
    compute = float((6 * fits.points.n * fits.points.d).max())
    optimum = fits.best().law.optimum(compute) if fits.approach3 or fits.coupled else None
    return {
        "approach3": describe(fits.approach3),
        "approach2": two
        and {
            **{name: getattr(two, name) for name in ("a", "n_factor", "b", "d_factor", "interval95")},
            "minima": [minimum._asdict() for minimum in two.minima],
        },
        "coupled": describe(fits.coupled),
        "optimum": optimum and dict(zip(("flops", "parameters", "tokens"), (compute, *optimum), strict=True)),
        "points": len(fits.points) + len(fits.outliers),
        "outliers": list(fits.outliers),
        "counts": {way: law and law._asdict() for way, law in counts.items()},
        "residuals": {
            found.form: dict(zip(fits.points.names, map(float, found.residuals), strict=True))
            for found in (fits.approach3, fits.coupled)
            if found
        },
        "warnings": list(fits.warnings),
    }
