"""Random changes of readings: `values` float32 and `observed` (channels, steps), `step_mask` int64 (steps,).

Values are 0 where nothing was measured, and stay so.
"""

import numpy as np

from rayfuse.modalities.augment.base import block
from rayfuse.modalities.base import Features
from rayfuse.spec.augment import DropChannels, MaskSeries, Noise, ScaleSeries, WarpSeries


def noise(options: Noise, features: Features, chance: np.random.Generator) -> Features:
    """In deviations of each channel's readings."""
    values, observed = features["values"], features["observed"]
    count = np.maximum(observed.sum(axis=1, keepdims=True), 1)
    mean = values.sum(axis=1, keepdims=True) / count
    deviation = np.sqrt((((values - mean) * observed) ** 2).sum(axis=1, keepdims=True) / count)
    drawn = chance.uniform(*options.sigma) * chance.standard_normal(values.shape, dtype=np.float32)
    return _with_values(features, values + drawn * deviation)


def scale(options: ScaleSeries, features: Features, chance: np.random.Generator) -> Features:
    factors = chance.normal(1, options.sigma, (len(features["values"]), 1))
    return _with_values(features, features["values"] * factors)


def warp(options: WarpSeries, features: Features, chance: np.random.Generator) -> Features:
    """Readings are taken at other times: linearly between those before and after, which must both be there."""
    length = int(features["step_mask"].sum())
    if length < 2:
        return features
    knots = 1 + chance.uniform(-options.strength, options.strength, options.knots + 1)
    speed = np.interp(np.linspace(0, options.knots, length - 1), np.arange(options.knots + 1), knots)
    times = np.concatenate([[0.0], np.cumsum(speed)]) * (length - 1) / speed.sum()
    before = np.clip(times.astype(np.int64), 0, length - 2)
    between = (times - before).astype(np.float32)
    observed, values = features["observed"].copy(), features["values"].copy()
    there = (between < 1e-6, between > 1 - 1e-6)
    observed[:, :length] = np.where(
        there[0], observed[:, before],
        np.where(there[1], observed[:, before + 1], observed[:, before] * observed[:, before + 1]),
    )  # fmt: skip
    values[:, :length] = values[:, before] * (1 - between) + values[:, before + 1] * between
    return _with_values({**features, "observed": observed}, values)


def mask(options: MaskSeries, features: Features, chance: np.random.Generator) -> Features:
    length = int(features["step_mask"].sum())
    observed = features["observed"].copy()
    observed[:, block(length, options.share, chance)] = 0
    return _with_values({**features, "observed": observed}, features["values"])


def drop_channels(options: DropChannels, features: Features, chance: np.random.Generator) -> Features:
    dropped = chance.random(len(features["values"])) < options.share
    dropped[chance.integers(len(dropped))] = False
    observed = np.where(dropped[:, None], features["observed"].dtype.type(0), features["observed"])
    return _with_values({**features, "observed": observed}, features["values"])


def _with_values(features: Features, values: np.ndarray) -> Features:
    return {**features, "values": (values * (features["observed"] > 0)).astype(np.float32)}
