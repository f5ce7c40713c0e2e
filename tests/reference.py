"""Kernel-wise soft masks once more, in float64 numpy, written from the formulas alone.

Nothing here shares code with ksm: units are found by plain loops over the weight's indices, and
the gradient is the closed form, written by hand.
"""

import numpy as np


def sigmoid(x):
    x = np.asarray(x, np.float64)
    return np.where(
        x >= 0, 1 / (1 + np.exp(-np.abs(x))), np.exp(-np.abs(x)) / (1 + np.exp(-np.abs(x)))
    )


def fraction(score, on, soft, rule):
    """n(S) of eq. 5, meaningful where off."""
    if rule == "none":
        return np.zeros_like(score)
    if rule in ("continuous", "detached"):
        return 2 * soft
    if rule == "minmax":
        values = score[~on]
        out = np.ones_like(score)
        if values.size and values.max() > values.min():
            out = (score - values.min()) / (values.max() - values.min())
        return out
    counted = np.where(on, 0.0, score)  # the released rule
    low, high = counted.min(), counted.max()
    return (counted - low) / (high - low) if high > low else np.ones_like(score)


def mask(score, beta, tau, temperature, alpha, rule, noise=None):
    score = np.asarray(score, np.float64)
    logit = beta * (score - tau) + (0 if noise is None else noise)
    on = logit >= 0
    soft = sigmoid(logit / temperature)
    return np.where(on, 1.0, alpha * fraction(score, on, soft, rule))


def mask_gradient(score, beta, tau, temperature, alpha, rule, noise=None):
    """d mask / d score, a unit at a time: the softmax's derivative passes straight through the
    threshold; the continuous rule adds alpha times its own where a unit is off."""
    logit = beta * (np.asarray(score, np.float64) - tau) + (0 if noise is None else noise)
    soft = sigmoid(logit / temperature)
    slope = soft * (1 - soft) * beta / temperature
    if rule == "continuous":
        slope = np.where(logit >= 0, slope, slope * (1 + 2 * alpha))
    return slope


def unit_of(index, kind, granularity, shape, groups=1, pointwise=1):
    """Index of the unit that a weight belongs to.

    Args:
        index: of the weight in its layer's own layout.
        kind: "conv", "transposed" or "linear".
        shape: the layer's weight.
        pointwise: input channels in a unit where a kernel is a single weight.
    """
    if kind == "transposed":  # (inputs, outputs / groups, *k)
        per_group = shape[0] // groups
        group, inner = divmod(index[0], per_group)
        o, i, k = group * shape[1] + index[1], inner, index[2:]
    else:
        o, i, k = index[0], index[1], index[2:]
    ones = (0,) * len(k)
    if granularity == "element":
        return (o, i, *k)
    if granularity == "channel":
        return (o, 0, *ones)
    if granularity == "group":
        return (o, i // 8, *ones)
    if kind == "linear":
        return (o // 4, i // 4)
    single = all(size == 1 for size in shape[2:])
    return (o, i // pointwise if single else i, *ones)


def unit_shape(kind, granularity, shape, groups=1, pointwise=1):
    indices = np.ndindex(*shape)
    units = [unit_of(index, kind, granularity, shape, groups, pointwise) for index in indices]
    return tuple(max(axis) + 1 for axis in zip(*units, strict=True))


def masked_weight(weight, factors, kind, granularity, groups=1, pointwise=1):
    out = np.empty(weight.shape, np.float64)
    for index in np.ndindex(*weight.shape):
        unit = unit_of(index, kind, granularity, weight.shape, groups, pointwise)
        out[index] = float(weight[index]) * factors[unit]
    return out


def score_gradient(weight, upstream, factors_gradient, kind, granularity, groups=1, pointwise=1):
    """d loss / d score from d loss / d (masked weight)."""
    out = np.zeros(factors_gradient.shape)
    for index in np.ndindex(*weight.shape):
        unit = unit_of(index, kind, granularity, weight.shape, groups, pointwise)
        out[unit] += float(weight[index]) * float(upstream[index])
    return out * factors_gradient
