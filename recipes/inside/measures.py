# Copyright 2026 The AGE-VLM authors. All rights reserved.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""The numbers of `recipes/figures.py`: how well a score tells two groups apart, and how concentrated attention is."""

from collections.abc import Callable

import numpy as np
import torch

from recipes.evaluation.metrics import area_under_curve


def auc(scores: np.ndarray, positive: np.ndarray) -> float:
    """
    Area under the ROC curve: the chance that a positive has a higher score than a negative, ties counting one half
    (Mann-Whitney). NaN if there is only one of the two groups.
    """
    if positive.all() or not positive.any():
        return float("nan")
    return area_under_curve(scores[positive], scores[~positive])


def roc(scores: np.ndarray, positive: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The ROC curve: false and true positive rates from (0, 0) to (1, 1), one step per distinct score."""
    order = np.argsort(-scores, kind="stable")
    last_of_its_score = np.append(np.diff(scores[order]) != 0, True)
    rates = []
    for group in (~positive, positive):
        found = np.cumsum(group[order])[last_of_its_score]
        rates.append(np.append(0, found) / max(1, group.sum()))
    return rates[0], rates[1]


def overlap(first: np.ndarray, second: np.ndarray, num_bins: int = 20) -> float:
    """
    Overlap coefficient of two samples: the common area of their histograms over the range of both. Two samples of one
    distribution come near to 1, the nearer the larger they are.
    """
    edges = np.histogram_bin_edges(np.concatenate([first, second]), num_bins)
    shares = [np.histogram(sample, edges)[0] / len(sample) for sample in (first, second)]
    return float(np.minimum(*shares).sum())


def interval(
    statistic: Callable[[np.ndarray], float], num_rows: int, num_draws: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """95% bootstrap interval of a statistic of rows, which gets the drawn rows' numbers; NaN draws are left out."""
    rng = np.random.default_rng(seed)
    draws = np.array([statistic(rng.integers(num_rows, size=num_rows)) for _ in range(num_draws)])
    if np.isnan(draws).all():
        return float("nan"), float("nan")
    low, high = np.nanpercentile(draws, [2.5, 97.5])
    return float(low), float(high)


def grouped_interval(
    statistic: Callable[[np.ndarray], float], groups: np.ndarray, num_draws: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """As [`interval`], with groups of rows (`groups` has each row's, as those of a picture) drawn whole."""
    rows_of = [np.flatnonzero(groups == group) for group in np.unique(groups)]
    return interval(
        lambda drawn: statistic(np.concatenate([rows_of[n] for n in drawn])), len(rows_of), num_draws, seed
    )


def with_interval(statistic: Callable[[np.ndarray], float], groups: np.ndarray) -> dict[str, float]:
    """The `value` of a statistic of rows, and `low` and `high` of its [`grouped_interval`]."""
    low, high = grouped_interval(statistic, groups)
    return {"value": statistic(np.arange(len(groups))), "low": low, "high": high}


def concentration(attention: torch.Tensor, on_nothing: float = 0.0) -> dict[str, float]:
    """
    How concentrated attention is that sums to 1 over the cells of a picture, or to 1 less what is `on_nothing`: its `entropy`
    as a share of even attention's, its `max`, and the share that its `top 5%` of cells have, all of what is on the picture.
    """
    attention = attention.flatten().double() / max(1 - on_nothing, torch.finfo(torch.float32).eps)
    entropy = -torch.special.xlogy(attention, attention).sum() / np.log(attention.numel())
    top = attention.topk(max(1, round(0.05 * attention.numel()))).values.sum()
    return {"entropy": entropy.item(), "max": attention.max().item(), "top 5%": top.item()}


def derangement(num_rows: int, seed: int = 0) -> np.ndarray:
    """A partner for every row, never itself: one random round through all of them."""
    order = np.random.default_rng(seed).permutation(num_rows)
    partners = np.empty(num_rows, dtype=np.int64)
    partners[order] = np.roll(order, -1)
    return partners
