"""Least squares for a few non-negative coefficients, learned as measurements come in."""

from __future__ import annotations

import math
from collections.abc import Sequence

_FORGETTING = 0.99
"""Weight of the past after each measurement: what is a hundred measurements old counts a third."""

_USUAL_ERROR = 0.25
"""Log of measured over predicted at which a measurement counts half."""

_RIDGE = 1e-4
"""Pull towards the prior's proportions: decides what the measurements leave open, and hardly anything else."""

_DAMPED_AFTER = 8
"""Measurements before predictions are trusted enough to call one an outlier."""


class NonNegativeRegression:
    """``y = sum(coefficient * x)``, each coefficient 0 or above, fitted to the *relative* error.

    Relative errors make small and large batches count alike, and make one slow outlier (a first call, a garbage
    collection) count little even before anything else is known; later, measurements far from the prediction are damped
    as well. Old measurements fade, so that a device that has become slower is followed.

    Args:
        prior: a guess of the coefficients. Only their proportions matter once there is a measurement.
    """

    def __init__(self, prior: Sequence[float]) -> None:
        self._prior = tuple(prior)
        self._coefficients = list(prior)
        size = len(self._prior)
        self._products = [[0.0] * size for _ in range(size)]
        self._targets = [0.0] * size
        self.count = 0

    @property
    def coefficients(self) -> tuple[float, ...]:
        return tuple(self._coefficients)

    def predict(self, features: Sequence[float]) -> float:
        return sum(c * x for c, x in zip(self._coefficients, features, strict=True))

    def observe(self, features: Sequence[float], value: float) -> None:
        """Learns that ``features`` gave ``value``. Values and features that are not positive and finite are ignored."""
        if not (value > 0 and math.isfinite(value)):
            return
        weight = 1.0
        if self.count >= _DAMPED_AFTER:
            error = math.log(value / max(self.predict(features), 1e-12))
            weight = 1 / (1 + (error / _USUAL_ERROR) ** 2)
        scaled = [x / value for x in features]
        for i, x in enumerate(scaled):
            self._targets[i] = _FORGETTING * self._targets[i] + weight * x
            row = self._products[i]
            for j, other in enumerate(scaled):
                row[j] = _FORGETTING * row[j] + weight * x * other
        self.count += 1
        self._coefficients = self._solve()

    def _solve(self) -> list[float]:
        """The ridge solution around the prior scaled to the data; what would be negative is dropped to 0."""
        size = len(self._prior)
        scale = self._prior_scale()
        active = list(range(size))
        solution = [0.0] * size
        while active:
            matrix = [[self._products[i][j] for j in active] for i in active]
            right = [self._targets[i] for i in active]
            for place, i in enumerate(active):
                ridge = _RIDGE * self._products[i][i] or 1.0  # A feature never seen keeps the prior.
                matrix[place][place] += ridge
                right[place] += ridge * scale * self._prior[i]
            found = _solve_linear(matrix, right)
            worst = min(range(len(active)), key=found.__getitem__)
            if found[worst] >= 0:
                for place, i in enumerate(active):
                    solution[i] = found[place]
                return solution
            del active[worst]
        return solution

    def _prior_scale(self) -> float:
        """The factor that makes the prior's proportions fit the measurements best."""
        along = sum(p * t for p, t in zip(self._prior, self._targets, strict=True))
        square = sum(p * q * self._products[i][j] for i, p in enumerate(self._prior) for j, q in enumerate(self._prior))
        return along / square if square > 0 else 1.0


def _solve_linear(matrix: list[list[float]], right: list[float]) -> list[float]:
    """Gaussian elimination of a symmetric positive definite system; the arguments are used up."""
    size = len(right)
    for pivot in range(size):
        for row in range(pivot + 1, size):
            factor = matrix[row][pivot] / matrix[pivot][pivot]
            right[row] -= factor * right[pivot]
            for column in range(pivot, size):
                matrix[row][column] -= factor * matrix[pivot][column]
    for pivot in reversed(range(size)):
        right[pivot] -= sum(matrix[pivot][column] * right[column] for column in range(pivot + 1, size))
        right[pivot] /= matrix[pivot][pivot]
    return right
