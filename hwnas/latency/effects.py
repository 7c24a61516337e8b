"""A line and shrunken effects in levels, fitted to figures: what calibrates networks and estimates blocks.

Effects of a level are drawn towards nothing, how strongly is what makes the figures likeliest: the spreads of levels maximise the
restricted likelihood (Patterson and Thompson, "Recovery of inter-block information when block sizes are unequal", 1971).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hwnas.ir.block import Part
from hwnas.ir.grid import Floats

_SPREADS = np.geomspace(0.1, 1e4, 51)  # of what a level of effects does to a row, over a row's noise
_SWEEPS = 4  # over the levels; mostly no spread changes in the second


@dataclass(frozen=True)
class Effects:
    """A line and shrunken effects, fitted to figures.

    Attributes:
        coefficients: Of the line.
        effects: One array for each level.
        left_out: By how much each figure exceeds what a fit without it expects.
        unlikeliness: Minus the logarithm of the restricted likelihood, up to a constant.
    """

    coefficients: Floats
    effects: tuple[Floats, ...]
    left_out: Floats
    unlikeliness: float


def fit_levels(line: Floats, levels: Sequence[Floats], figures: Floats) -> Effects:
    """The fit whose spreads are likeliest, found level by level from none.

    Args:
        line: What is not shrunk; (figures, terms).
        levels: What an effect of 1 adds to a figure, for each level; (figures, effects).
        figures: What is to be explained, each with noise of the same size.
    """
    kernels = [level @ level.T for level in levels]
    grids = [np.array([0.0, *(_SPREADS**2 * len(figures) / max(np.trace(kernel), 1e-30))]) for kernel in kernels]
    variances = [0.0] * len(levels)
    for _ in range(_SWEEPS):
        before = list(variances)
        for level, grid in enumerate(grids):
            others = _covariance([*variances[:level], 0.0, *variances[level + 1:]], kernels, len(figures))
            variances[level] = float(grid[np.argmin(_unlikeliness(line, figures, others, kernels[level], grid))])
        if variances == before:
            break
    return _generalised_least_squares(line, levels, kernels, variances, figures)


def _covariance(variances: Sequence[float], kernels: Sequence[Floats], size: int) -> Floats:
    """Of figures, over that of their noise."""
    return np.eye(size) + sum(variance * kernel for variance, kernel in zip(variances, kernels, strict=True))


def _unlikeliness(line: Floats, figures: Floats, others: Floats, kernel: Floats, variances: Floats) -> Floats:
    """Minus the logarithm of the restricted likelihood with covariance `others + variance * kernel`, up to a constant, for each
    variance: at once, in coordinates in which all of these covariances are diagonal."""
    whiten = np.linalg.inv(np.linalg.cholesky(others))
    values, vectors = np.linalg.eigh(whiten @ kernel @ whiten.T)
    rotate = vectors.T @ whiten
    x, y = rotate @ line, rotate @ figures
    diagonal = 1 + variances[:, None] * np.maximum(values, 0.0)  # (variances, figures)
    information = np.einsum("nt,vn,nu->vtu", x, 1 / diagonal, x)
    projection = np.einsum("nt,vn,n->vt", x, 1 / diagonal, y)
    explained = np.einsum("vt,vt->v", projection, np.linalg.solve(information, projection[:, :, None])[:, :, 0])
    degrees = len(figures) - line.shape[1]
    noise = np.maximum((y**2 / diagonal).sum(axis=1) - explained, 1e-30) / degrees
    return 0.5 * (degrees * np.log(noise) + np.log(diagonal).sum(axis=1) + np.linalg.slogdet(others)[1]
                  + np.linalg.slogdet(information)[1])


def _generalised_least_squares(line: Floats, levels: Sequence[Floats], kernels: Sequence[Floats], variances: Sequence[float],
                               figures: Floats) -> Effects:
    """Mean and leave-one-out residuals with covariance `1 + sum of variance * kernel`.

    Rasmussen and Williams, "Gaussian Processes for Machine Learning", 2006, sec. 2.7 and 5.4.2.
    """
    covariance = _covariance(variances, kernels, len(figures))
    inverse = np.linalg.inv(covariance)
    information = line.T @ inverse @ line
    coefficients = np.asarray(np.linalg.solve(information, line.T @ inverse @ figures), np.float64)
    rest = inverse @ (figures - line @ coefficients)
    projected = inverse - inverse @ line @ np.linalg.solve(information, line.T @ inverse)
    degrees = len(figures) - line.shape[1]
    noise = max(float((figures - line @ coefficients) @ rest), 1e-30) / degrees
    unlikeliness = 0.5 * (degrees * np.log(noise) + np.linalg.slogdet(covariance)[1] + np.linalg.slogdet(information)[1])
    return Effects(coefficients, tuple(variance * (level.T @ rest) for variance, level in zip(variances, levels, strict=True)),
                   rest / np.maximum(projected.diagonal(), 1e-12), float(unlikeliness))


def block_traits(part: Part) -> frozenset[str]:
    """What a block may have in common with others: input shape, kind and every field, those of a block inside of it too."""
    return frozenset({f"{part.input_shape}", *_told(part.block.to_dict())})


def _told(fields: Mapping[str, Any]) -> list[str]:
    kind = fields["kind"]
    inside = [trait for value in fields.values() if isinstance(value, Mapping) for trait in _told(value)]
    return [kind, *inside, *(f"{kind}.{name}={value}" for name, value in fields.items()
                             if name != "kind" and not isinstance(value, Mapping))]


def trait_matrix(told: Sequence[frozenset[str]]) -> Floats:
    """Which block has which trait; (blocks, traits). Only what some have and others do not; of mean square 1 over blocks."""
    traits = [trait for trait in sorted(frozenset().union(*told)) if 1 < sum(trait in own for own in told) < len(told)]
    has = np.array([[trait in own for trait in traits] for own in told], np.float64).reshape(len(told), len(traits))
    return has / np.sqrt(max(has.sum(axis=1).mean(), 1.0)) if traits else has
