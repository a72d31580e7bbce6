"""
Is a window unlike its reference, where rows of one day are alike? Days are dealt anew, and the index is taken again.

If nothing has changed, which days make the window is chance: any other days of both sides might as well have made it.
So as many days as the window has are drawn from all days, thousands of times, and p is the share of deals whose index
is at least the window's. That needs no model of how alike the rows of a day are, nor many days, and it is exact: at
most a share x of undrifted windows has p ≤ x. With few days the least p that there can be is large; :func:`least_p`.

A day with fewer rows says less about its day. A day that is dealt to the other side therefore gives no more rows than
a day there has on average, drawn at random; one that has fewer gives all it has, which errs on the side of no alarm.

What it does not know: days that are alike in a row, such as a week of rain. It takes days as if each were on its own.

Sources: Fisher, The design of experiments, 1935, ch. 3; Besag and Clifford, Sequential Monte Carlo p-values, 1991.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from airloop.domain.metrics import Floats

STOP = 10
"""Deals at least as far apart as the window after which it is clear enough that chance does as much."""
FIRST = (100, 900)
"""Deals of the first parts; most undrifted columns need no more than one."""
CELLS = 250_000
"""Deals times clusters of a later part: how much is in memory at a time."""
MOST = 1_000_000
"""Deals, however many columns there are."""
TIE = 1e-9
"""Indices closer than this are the same: what is left is rounding."""


def draws_for(columns: int, rate: float) -> int:
    """Deals with which one of ``columns`` columns can be told at ``rate`` over all of them, with something to spare."""
    return min(MOST, math.ceil(10 * max(1, columns) / rate))


def least_p(reference: int, window: int, draws: int) -> float:
    """The least p that ``window`` clusters against ``reference`` can have."""
    return max(1 / (draws + 1), 1 / math.comb(reference + window, window))


def p_of_deals(
    reference: Floats, window: Floats, index: Callable[[Floats, Floats], NDArray[np.float64]], *, draws: int
) -> float:
    """
    How often days that are dealt anew are at least as far apart as those of the window from those of the reference.

    :param reference: counts by cluster and bin, a row at least in each cluster.
    :param window: the same of the window, in the same bins.
    :param index: how far apart the last axis of two arrays of counts is, shape ``(…, bins)``.
    :param draws: deals at most; fewer are made where it is soon clear that p is large.
    """
    generator = np.random.default_rng(0)
    there, here = (float(c.sum() / len(c)) for c in (reference, window))
    as_window = np.concatenate([_thinned(reference, here / there, generator), window])
    as_reference = np.concatenate([reference, _thinned(window, there / here, generator)])
    seen = float(index(reference.sum(axis=0), window.sum(axis=0)))
    total = as_reference.sum(axis=0)
    made = reached = part = 0
    while made < draws and reached < STOP:
        dealt = _deals(len(as_window), len(window), part).astype(np.float64)[: draws - made]
        found = index(total - dealt @ as_reference, dealt @ as_window)
        reached += int((found >= seen - TIE).sum())
        made += len(dealt)
        part += 1
    return (reached + 1) / (made + 1)


@lru_cache(maxsize=64)
def _deals(clusters: int, taken: int, part: int) -> NDArray[np.bool_]:
    """Which clusters make the window, by deal; all columns are dealt alike."""
    deals = FIRST[part] if part < len(FIRST) else max(FIRST[0], CELLS // clusters)
    keys = np.random.default_rng((clusters, taken, part)).random((deals, clusters), dtype=np.float32)
    found = np.zeros((deals, clusters), dtype=np.bool_)
    np.put_along_axis(found, np.argpartition(keys, taken - 1, axis=1)[:, :taken], True, axis=1)
    return found


def _thinned(counts: Floats, share: float, generator: np.random.Generator) -> Floats:
    """About a share of each cluster's rows, drawn without putting back; all of them if it is 1 or more."""
    if share >= 1:
        return counts
    left = counts.sum(axis=1).astype(np.int64)
    wanted = np.rint(share * left).astype(np.int64)
    found = np.empty_like(counts)
    # The multivariate hypergeometric distribution bin by bin, for all clusters at once.
    for i, own in enumerate(counts.astype(np.int64).T):
        left -= own
        found[:, i] = generator.hypergeometric(own, left, wanted)
        wanted -= found[:, i].astype(np.int64)
    return found
