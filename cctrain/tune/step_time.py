"""How long a step of a point takes: a model of host and GPU, fitted to the trials as they come.

    host   = crossings x cost
    device = kernels x floor + FLOPs / rate x (1 + tokens / crowd) + link bytes / bandwidth
    step   = micro-batches x the slower of host and device + fixed

A graph changes the device's time by a factor of its own; past so many tokens (crowd) a micro-batch gets slower. The
slower of two that vary is a little more than either: it is their p-norm, with p fitted. All constants are fitted as
logarithms by least squares (`scipy`), each with a prior: where it lies, and how far off that may be. What the model
does not know (other kernels for other shapes, caches, clocks) is a second layer: a Gaussian process over the logarithm
of the step time, in which points that are alike are off alike, of several sizes by how likely trials make each. So a
wrong model becomes interpolation between trials, with an error that says so. Rasmussen and Williams, "Gaussian
Processes for Machine Learning" (2006), section 2.7, is this construction with a linear model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing
from scipy.linalg import cho_factor, cho_solve
from scipy.optimize import least_squares

from cctrain.tune.point import Point, Work

Floats = np.typing.NDArray[np.float64]

_NOISE = 0.02
"""Of the logarithm of a step time, from one run of a point to the next."""
_MISFITS = (0.03, 0.1, 0.3)
"""Sizes of the second layer."""
_LENGTHS = {
    **{"tokens": 4.0, "batch": 6.0, "row": 4.0, "tensor": 2.0},
    **{"replicas": 1.0, "checkpointing": 2.0, "step": 1.0, "packing": 2.0},
}
"""How far points may differ until they are off independently: numbers as doublings, the rest as changes."""


@dataclass(frozen=True, slots=True)
class Prior:
    """Where the constants lie before anything has run, and the standard deviations of their logarithms."""

    middle: Floats
    spread: Floats


def prior_of(peak_flops: float | None, *, is_cpu: bool) -> Prior:
    """For a GPU with this peak (None: unknown), or a CPU.

    Measured beginnings (docs/evidence/README.md, one H200): 200 to 250 ms for 5,380 launches of a host-bound step make
    some 40 us a crossing, tolls come on top; 346 ms for 4,096 tokens of an 8B LoRA step make a third of the peak.
    """
    rate = 5e10 if is_cpu else 0.4 * (peak_flops or 5e14)
    how_sure = 2.0 if is_cpu or peak_flops is None else 0.5
    constants = {  # in the order of log_step_time
        "cost_s": (1e-5 if is_cpu else 4.5e-5, 0.6),
        "rate": (rate, how_sure),
        "floor_s": (3e-6, 0.8),
        "fixed_s": (0.01, 1.2),
        "bandwidth": (1.5e11, 1.0),
        "graphed": (0.95, 0.2),
        "crowd": (3e5, 1.5),
        "norm": (6.0, 0.4),
    }
    values = np.array(list(constants.values()))
    return Prior(np.log(values[:, 0]), values[:, 1])


@dataclass(frozen=True, slots=True)
class Asked:
    """Points as columns: what a step of each asks for."""

    accumulation: Floats
    crossings: Floats
    kernels: Floats
    flops: Floats
    tokens: Floats
    """Of a micro-batch, padded."""
    link_bytes: Floats
    is_graphed: Floats
    places: Floats
    """For the second layer: a row a point, in units of `_LENGTHS`."""


def asked(points: Sequence[Point], works: Mapping[Point, Work], crossings: Floats, padding: Floats) -> Asked:
    """`crossings` of a micro-batch; `padding`: padded tokens of a row over its `row_tokens`."""
    chosen = [works[point] for point in points]
    rows = np.array([work.row_tokens for work in chosen]) * padding
    micro = np.array([point.micro_batch for point in points], dtype=float)
    columns = {
        "tokens": np.log2(micro * rows),
        "batch": np.log2([point.global_batch for point in points]),
        "row": np.log2(rows),
        "tensor": np.log2([point.tensor for point in points]),
        "replicas": [point.is_replicated for point in points],
        "checkpointing": [point.is_checkpointing for point in points],
        "step": [point.step != "stock" for point in points],
        "packing": [bool(point.packing) for point in points],
    }
    return Asked(
        accumulation=np.array([point.accumulation for point in points], dtype=float),
        crossings=crossings,
        kernels=np.array([work.kernels for work in chosen]),
        flops=np.array([work.flops for work in chosen]) * padding,
        tokens=micro * rows,
        link_bytes=np.array([work.link_bytes for work in chosen]),
        is_graphed=np.array(columns["step"], dtype=float),
        places=np.array([np.asarray(columns[name], dtype=float) / length for name, length in _LENGTHS.items()]).T,
    )


def log_step_time(constants: Floats, what: Asked) -> Floats:
    """The model, in logarithms of seconds."""
    cost, rate, floor, fixed, bandwidth, graphed, crowd, norm = np.exp(constants)
    host = what.crossings * cost
    computing = what.kernels * floor + what.flops / rate * (1 + what.tokens / crowd)
    device = computing * graphed**what.is_graphed + what.link_bytes / bandwidth
    slower = np.maximum(host, device)
    slower = slower * (1 + (np.minimum(host, device) / slower) ** norm) ** (1 / norm)
    return np.asarray(np.log(what.accumulation * slower + fixed))


@dataclass(frozen=True, slots=True)
class StepTimeModel:
    """The model after some trials, with one size of the second layer."""

    constants: Floats
    _covariance: Floats
    _misfit: float
    _seen: Asked
    _factor: tuple[Floats, bool]
    _weights: Floats

    def predict(self, what: Asked) -> tuple[Floats, Floats]:
        """Logarithms of the step times, and their standard deviations without the noise of a run."""
        model = log_step_time(self.constants, what)
        slope = _slope(self.constants, what)
        if not len(self._weights):
            variance = np.einsum("ij,jk,ik->i", slope, self._covariance, slope) + self._misfit**2
            return model, np.sqrt(variance)
        near = _likeness(what, self._seen, self._misfit)
        solved = cho_solve(self._factor, near.T)
        left = slope - solved.T @ _slope(self.constants, self._seen)
        variance = self._misfit**2 - np.einsum("ij,ji->i", near, solved)
        variance = np.maximum(variance, 0.0) + np.einsum("ij,jk,ik->i", left, self._covariance, left)
        return model + near @ self._weights, np.sqrt(variance)


@dataclass(frozen=True, slots=True)
class StepTimeModels:
    """One for each size of the second layer, with the weight that the trials give it."""

    weights: Floats
    models: tuple[StepTimeModel, ...]

    def predict(self, what: Asked) -> tuple[Floats, Floats]:
        """Mean and standard deviation of the logarithms of the step times over all of them."""
        means, errors = (np.array(each) for each in zip(*(one.predict(what) for one in self.models), strict=True))
        mean = self.weights @ means
        return mean, np.sqrt(self.weights @ (errors**2 + (means - mean) ** 2))


def fit_step_time(prior: Prior, seen: Asked, log_times: Floats) -> StepTimeModels:
    """To the trials `seen`; the weights are the likelihoods of these (Laplace's approximation)."""
    logs, models = zip(*(_fit(prior, seen, log_times, misfit) for misfit in _MISFITS), strict=True)
    weights = np.exp(np.array(logs) - max(logs))
    return StepTimeModels(weights / weights.sum(), models)


def _fit(prior: Prior, seen: Asked, log_times: Floats, misfit: float) -> tuple[float, StepTimeModel]:
    noise = _likeness(seen, seen, misfit) + _NOISE**2 * np.eye(len(log_times))
    root = np.linalg.cholesky(noise)

    def residuals(constants: Floats) -> Floats:
        off = np.linalg.solve(root, log_times - log_step_time(constants, seen))
        return np.concatenate([off, (constants - prior.middle) / prior.spread])

    found = least_squares(residuals, prior.middle)
    information = found.jac.T @ found.jac
    likelihood = -found.cost - np.log(np.diag(root)).sum() - 0.5 * np.linalg.slogdet(information)[1]
    factor = cho_factor(noise)
    weights = cho_solve(factor, log_times - log_step_time(found.x, seen))
    return likelihood, StepTimeModel(found.x, np.linalg.inv(information), misfit, seen, factor, weights)


def _likeness(one: Asked, other: Asked, misfit: float) -> Floats:
    """Covariance of what the model does not know: exponential in the distance of the points."""
    distance = np.abs(one.places[:, None, :] - other.places[None, :, :]).sum(axis=2)
    return np.asarray(misfit**2 * np.exp(-distance))


def _slope(constants: Floats, what: Asked) -> Floats:
    """Of the logarithms of the step times by the constants: a row a point."""
    step = 1e-5
    sides = [
        (log_step_time(constants + step * unit, what) - log_step_time(constants - step * unit, what)) / (2 * step)
        for unit in np.eye(len(constants))
    ]
    return np.array(sides).T
