"""Forms of the final loss as a function of parameters N and tokens D, and how they are fitted to points.

    approach 3 (Hoffmann et al. 2022)   L = E + A N^-alpha + B D^-beta
    coupled (Gadre et al. 2024)         L = E + (a M^eta + b M^-eta) C^-eta,  M = D / N,  C = 6 N D

The coupled form is approach 3 with alpha = beta = 2 eta, because its terms are a (6 N^2)^-eta and b (6 D^2)^-eta.
Therefore one objective serves both, with five unknowns or with four.

The objective is the mean Huber loss of log L, as in Hoffmann et al. The search starts from a grid of exponents, for
each of which E and the factors are solved linearly (variable projection), and continues with scipy's BFGS.
"""

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

Array = np.ndarray[Any, np.dtype[np.float64]]
Form = Literal["approach3", "coupled"]

DELTA = 1e-3  # of the Huber loss, as in Hoffmann et al.: larger residuals of log L count in proportion to their size
UNKNOWNS = {"approach3": 5, "coupled": 4}
_GRID = np.geomspace(0.05, 1.5, 16)  # exponents to start from
_STARTS = 3  # points of the grid to continue from
_SMALLEST_LOG = -50.0  # of E and the factors: a term that vanishes does not become zero
_SMALLEST_EXPONENT = 1e-4  # a term with less is a constant; keeps the optimum of a law defined
_LARGEST_LOG = 600.0  # of an optimal N or D: a law from a few points may put it beyond the range of floats
_LARGEST_EXPONENT = 5.0  # keeps factors within the range of floats; real exponents are below 2


class Law(NamedTuple):
    """L = E + A N^-alpha + B D^-beta."""

    E: float
    A: float
    alpha: float
    B: float
    beta: float

    def loss(self, n: Any, d: Any) -> Any:
        """The loss of models with `n` parameters after `d` tokens; numbers or arrays."""
        return self.E + self.A * np.power(n, -self.alpha) + self.B * np.power(d, -self.beta)

    def coupled(self) -> dict[str, float]:
        """E, a, b and eta of the coupled form, if alpha = beta."""
        eta = self.alpha / 2
        return {"E": self.E, "a": self.A * 6**eta, "b": self.B * 6**eta, "eta": eta}

    def values(self, form: Form) -> dict[str, float]:
        """The parameters by their names in the form."""
        return self._asdict() if form == "approach3" else self.coupled()

    def optimal_exponents(self) -> tuple[float, float]:
        """Exponents of the compute C with which the optimal N and D grow."""
        return self.beta / (self.alpha + self.beta), self.alpha / (self.alpha + self.beta)

    def optimum(self, flops: float) -> tuple[float, float]:
        """N and D of the lowest loss with 6 N D = `flops` (Hoffmann et al. 2022, equation 4)."""
        a, b = self.optimal_exponents()
        logs = np.log([self.alpha, self.A, self.beta, self.B, flops / 6])
        ratio = (logs[0] + logs[1] - logs[2] - logs[3]) / (self.alpha + self.beta)
        n, d = np.exp(np.clip([ratio + a * logs[4], b * logs[4] - ratio], -_LARGEST_LOG, _LARGEST_LOG))
        return float(n), float(d)


@dataclass(frozen=True)
class Objective:
    """The function to minimize.

    Points are taken relative to their mean in log N and log D, where factors and exponents are hardly correlated.
    `theta` holds the logarithms of E, of both factors at the mean point, and of the exponents (one if `tied`).

    Attributes:
        x: log N minus its mean, float64 (points,).
        y: log D minus its mean, (points,).
        z: log L, (points,).
        tied: alpha = beta.
    """

    x: Array
    y: Array
    z: Array
    tied: bool

    def residuals(self, theta: Array) -> tuple[Array, Array]:
        """Fitted minus observed log L, and the derivatives: (points,), (points, unknowns)."""
        alpha, beta = _exponents(theta)
        terms = np.exp([np.full_like(self.x, theta[0]), theta[1] - alpha * self.x, theta[2] - beta * self.y])
        loss = terms.sum(axis=0)
        shares = terms / loss
        by_alpha, by_beta = -shares[1] * self.x * alpha, -shares[2] * self.y * beta
        exponents = [by_alpha + by_beta] if self.tied else [by_alpha, by_beta]
        return np.log(loss) - self.z, np.stack([*shares, *exponents], axis=1)

    def __call__(self, theta: Array) -> tuple[float, Array]:
        """The mean Huber loss in units of DELTA squared, and its gradient."""
        residuals, derivatives = self.residuals(theta)
        scaled = residuals / DELTA
        clipped = np.clip(scaled, -1, 1)
        value = float((clipped * (scaled - clipped / 2)).mean())
        return value, clipped @ derivatives / (DELTA * len(self.x))

    def starts(self) -> list[Array]:
        """The best points of the grid, each with E and the factors that least squares gives for its exponents."""
        alphas, betas = (_GRID, _GRID) if self.tied else (axis.ravel() for axis in np.meshgrid(_GRID, _GRID))
        terms = [
            np.ones((len(alphas), len(self.x))),
            np.exp(-np.outer(alphas, self.x)),
            np.exp(-np.outer(betas, self.y)),
        ]
        columns = np.stack(terms, axis=2) / np.exp(self.z)[:, None]  # of relative residuals, as those of log L are
        gram = columns.transpose(0, 2, 1) @ columns + 1e-12 * len(self.x) * np.eye(3)
        linear = np.linalg.solve(gram, columns.sum(axis=1)[..., None])[..., 0]
        logs = np.log(np.maximum(linear, 1e-3 * np.exp(self.z.min())))  # a negative factor starts near zero
        exponents = np.log(np.stack([alphas] if self.tied else [alphas, betas], axis=1))
        grid = np.concatenate([logs, exponents], axis=1)
        return sorted(grid, key=lambda theta: self(theta)[0])[:_STARTS]


def fit(form: Form, n: Array, d: Array, loss: Array, start: Law | None = None) -> Law:
    """Fit a form.

    Args:
        form: of the loss.
        n: parameters, (points,).
        d: tokens, (points,).
        loss: final losses, (points,).
        start: a law to start from; None: the grid.

    Returns:
        The law with the smallest objective.
    """
    from scipy import optimize

    mean_n, mean_d = np.log(n).mean(), np.log(d).mean()
    objective = Objective(np.log(n) - mean_n, np.log(d) - mean_d, np.log(loss), tied=form == "coupled")
    starts = [_theta(start, mean_n, mean_d)[: UNKNOWNS[form]]] if start else objective.starts()
    with np.errstate(all="ignore"):  # a line search may try extreme values, and rejects them
        found = [
            optimize.minimize(objective, theta, jac=True, method="BFGS", options={"gtol": 1e-5}) for theta in starts
        ]
    theta = min(found, key=lambda result: float(result.fun)).x
    E, a, b = np.exp(np.maximum(theta[:3], _SMALLEST_LOG))
    alpha, beta = _exponents(theta)
    return Law(float(E), float(a * np.exp(alpha * mean_n)), float(alpha), float(b * np.exp(beta * mean_d)), float(beta))


def _exponents(theta: Array) -> Array:
    return np.exp(np.clip(theta[[3, -1]], np.log(_SMALLEST_EXPONENT), np.log(_LARGEST_EXPONENT)))


def _theta(law: Law, mean_n: float, mean_d: float) -> Array:
    """The unknowns of a law."""
    factors = np.log([law.E, law.A, law.B]) - [0, law.alpha * mean_n, law.beta * mean_d]
    return np.array([*factors, np.log(law.alpha), np.log(law.beta)])
