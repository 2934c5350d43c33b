"""The similarity of two dictionaries: their latents matched one to one by the cosine of decoder rows.

The matching is the one-to-one assignment with the greatest total cosine (the Hungarian algorithm). Its mean cosine is
the pairwise consistency of Song et al. (PW-MCC, arXiv:2505.20254), but with the cosine's sign: if codes are not
negative, a latent that writes d and one that writes -d are different. For a signed type, whose codes may be negative,
they are the same, and the magnitude counts. The share above 0.7 is that of Paulo and Belrose (arXiv:2501.16615), of
decoders alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

SAME = 0.7
"""Cosine above which two latents count as the same."""
CELLS = 6144**2
"""Cosines per matching: 1 GB at its height, and 4 seconds of one core."""


@dataclass(frozen=True)
class Match:
    """Two dictionaries of which the smaller has `latents` rows."""

    cosine: float
    """Mean over matched pairs; NaN if there are none."""
    same: float
    """Share of the pairs whose cosine is above SAME."""
    latents: int
    rows: int
    """Rows of the smaller dictionary that were matched; fewer than `latents` if it was sampled."""


def match(a: NDArray[Any], b: NDArray[Any], cells: int = CELLS, *, signed: bool = False) -> Match:
    """Match the rows of the smaller dictionary, a (n, d) or b (m, d), with different rows of the larger one.

    With more than `cells` cosines, as many rows of the smaller one as fit are drawn with a generator of its own (always
    the same) and matched with all of the larger one. Rows that are not drawn do not compete for a partner, so that,
    apart from sampling noise, the mean is at least that of the whole matching. `signed`: ignore the sign of a cosine.
    Raises ValueError if the widths differ.
    """
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1]:
        raise ValueError(f"dictionaries {a.shape} and {b.shape}: expected two of one width")
    from scipy.optimize import linear_sum_assignment

    small, large = sorted((a, b), key=len)
    latents = len(small)
    if not latents:
        return Match(np.nan, np.nan, 0, 0)
    rows = min(latents, max(1, cells // len(large)))
    if rows < latents:
        small = small[np.sort(np.random.default_rng(0).choice(latents, rows, replace=False))]
    cosine = _unit(small).astype(np.float32) @ _unit(large).astype(np.float32).T
    left, right = linear_sum_assignment(np.abs(cosine) if signed else cosine, maximize=True)
    matched = (_unit(small[left]) * _unit(large[right])).sum(1)
    matched = np.abs(matched) if signed else matched
    return Match(float(matched.mean()), float((matched > SAME).mean()), latents, rows)


def _unit(rows: NDArray[Any]) -> NDArray[np.float64]:
    """Return rows scaled to length 1, in float64; a row of zeros stays zero."""
    precise = rows.astype(np.float64)
    return np.asarray(precise / np.maximum(np.linalg.norm(precise, axis=1, keepdims=True), 1e-30))
