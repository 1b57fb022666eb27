"""Augmentations of time series: `values` and `observed`, float32 (channels, steps); `step_mask`, int64 (steps,).

Missing values are 0 and stay 0.
"""

import numpy as np

from rayfuse.modalities.augment.base import random_span
from rayfuse.modalities.base import Features
from rayfuse.spec.augment import (
    DropChannels,
    GaussianNoise,
    ScaleTimeseries,
    TimeMaskTimeseries,
    TimeWarpTimeseries,
)


def gaussian_noise(options: GaussianNoise, features: Features, rng: np.random.Generator) -> Features:
    """Add Gaussian noise, in standard deviations of each channel."""
    values, observed = features["values"], features["observed"]
    count = np.maximum(observed.sum(axis=1, keepdims=True), 1)
    mean = values.sum(axis=1, keepdims=True) / count
    deviation = np.sqrt((((values - mean) * observed) ** 2).sum(axis=1, keepdims=True) / count)
    drawn = rng.uniform(*options.sigma) * rng.standard_normal(values.shape, dtype=np.float32)
    return _replace_values(features, values + drawn * deviation)


def scale(options: ScaleTimeseries, features: Features, rng: np.random.Generator) -> Features:
    """Multiply each channel by a random factor."""
    factors = rng.normal(1, options.sigma, (len(features["values"]), 1))
    return _replace_values(features, features["values"] * factors)


def time_warp(options: TimeWarpTimeseries, features: Features, rng: np.random.Generator) -> Features:
    """Warp the time axis, with linear interpolation; values next to missing ones become missing."""
    length = int(features["step_mask"].sum())
    if length < 2:
        return features
    knots = 1 + rng.uniform(-options.strength, options.strength, options.control_points + 1)
    speed = np.interp(
        np.linspace(0, options.control_points, length - 1), np.arange(options.control_points + 1), knots
    )
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
    return _replace_values({**features, "observed": observed}, values)


def time_mask(options: TimeMaskTimeseries, features: Features, rng: np.random.Generator) -> Features:
    """Mask a random span of all channels as missing."""
    length = int(features["step_mask"].sum())
    observed = features["observed"].copy()
    observed[:, random_span(length, options.time_mask_ratio, rng)] = 0
    return _replace_values({**features, "observed": observed}, features["values"])


def drop_channels(options: DropChannels, features: Features, rng: np.random.Generator) -> Features:
    """Mask random channels as missing; at least one remains."""
    dropped = rng.random(len(features["values"])) < options.drop_prob
    dropped[rng.integers(len(dropped))] = False
    observed = np.where(dropped[:, None], features["observed"].dtype.type(0), features["observed"])
    return _replace_values({**features, "observed": observed}, features["values"])


def _replace_values(features: Features, values: np.ndarray) -> Features:
    return {**features, "values": (values * (features["observed"] > 0)).astype(np.float32)}
