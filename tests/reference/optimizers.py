"""The optimizers of docs/semantics.md, section 6, on the float32 rows of a whole batch at once."""

import math
from typing import NamedTuple

import numpy as np

from embstore.policies import FTRL, SGD, Adagrad, Adam, AdamW, RowWiseAdagrad

from .floats import row_norm, row_sum

F = np.float32


class Scalars(NamedTuple):
    """What one call hands to the formulas: the unrounded learning rate and Adam's powers."""

    lr: float
    beta1_power: float
    beta2_power: float


def slot_floats(optimizer, dim):
    """Return how many float32 slots a row has."""
    return sum(width for _, width in optimizer.slots(dim)) if optimizer else 0


def initial_slots(optimizer, n, dim):
    """Return the slots that `n` rows are born with."""
    slots = np.zeros((n, slot_floats(optimizer, dim)), np.float32)
    if isinstance(optimizer, Adagrad | RowWiseAdagrad | FTRL):
        slots[:, : optimizer.slots(dim)[0][1]] = F(optimizer.initial_accumulator)
    return slots


def condition(optimizer, g, w):
    """Clip gradients by value, then by norm, then add coupled weight decay."""
    if optimizer.clip_value is not None:
        c = F(optimizer.clip_value)
        g = np.where(g < -c, -c, np.where(g > c, c, g))
    if optimizer.clip_norm is not None:
        c = F(optimizer.clip_norm)
        norm = row_norm(g)
        long = norm > c
        g = g.copy()
        g[long] = g[long] * (c / norm[long])[:, None]
    if optimizer.weight_decay != 0 and not isinstance(optimizer, AdamW):
        g = g + F(optimizer.weight_decay) * w
    return g


def sgd(optimizer, scalars, w, slots, g):
    lr = F(scalars.lr)
    if optimizer.momentum == 0:
        return w - lr * g, slots
    momentum = F(optimizer.momentum)
    b = momentum * slots + g
    u = g + momentum * b if optimizer.nesterov else b
    return w - lr * u, b


def adagrad(optimizer, scalars, w, slots, g):
    a = slots + g * g
    return w - (F(scalars.lr) * g) / (np.sqrt(a) + F(optimizer.eps)), a


def rowwise_adagrad(optimizer, scalars, w, slots, g):
    a = slots[:, 0] + row_sum(g * g) / F(g.shape[1])
    s = F(scalars.lr) / (np.sqrt(a) + F(optimizer.eps))
    return w - s[:, None] * g, a[:, None]


def adam(optimizer, scalars, w, slots, g):
    lr, beta1_power, beta2_power = scalars
    beta1, beta2 = optimizer.betas
    dim = g.shape[1]
    m, v = slots[:, :dim], slots[:, dim:]
    if isinstance(optimizer, AdamW):
        w = w * F(1.0 - lr * optimizer.weight_decay)
    m = m + (g - m) * F(1.0 - beta1)
    v = v + (g * g - v) * F(1.0 - beta2)
    s = F(lr * math.sqrt(1.0 - beta2_power) / (1.0 - beta1_power))
    return w - (s * m) / (np.sqrt(v) + F(optimizer.eps)), np.concatenate((m, v), axis=1)


def ftrl(optimizer, scalars, w, slots, g):
    dim, lr, l1 = g.shape[1], F(scalars.lr), F(optimizer.l1)
    n, z = slots[:, :dim], slots[:, dim:]
    q = F(2.0 * optimizer.l2 + optimizer.beta / scalars.lr)
    n2 = n + g * g
    sigma = (np.sqrt(n2) - np.sqrt(n)) / lr
    z = (z + g) - sigma * w
    moved = (np.where(z < 0, -l1, l1) - z) / (np.sqrt(n2) / lr + q)
    return np.where(np.abs(z) <= l1, F(0), moved), np.concatenate((n2, z), axis=1)


FORMULAS = {
    SGD: sgd,
    Adagrad: adagrad,
    RowWiseAdagrad: rowwise_adagrad,
    Adam: adam,
    AdamW: adam,
    FTRL: ftrl,
}


def update(optimizer, scalars, w, slots, g):
    """Return the new (w, slots) of rows, (n, dim) and (n, slot_floats), from their gradients g."""
    g = condition(optimizer, g, w)
    w, slots = FORMULAS[type(optimizer)](optimizer, scalars, w, slots, g)
    assert w.dtype == slots.dtype == np.float32
    return w, slots
