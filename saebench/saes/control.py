"""Controls: SAEs with a part that stays at its random start (arXiv 2602.14111). A score is worth what it has above
theirs.

frozen_decoder: W_dec does not move. frozen_encoder: W_enc does not move, its biases and thresholds do. soft_decoder:
every row of W_dec stays within a cosine of `COSINE` of its start. The start is random, whatever `start` says: rows of
the data would already know something.
"""

from __future__ import annotations

import torch
from torch import Tensor

from saebench.saes.kernels import blocks

COSINE = 0.8


@torch.no_grad()
def keep_near(rows: Tensor, start: Tensor) -> None:
    """Turn unit rows (F, d), in place, back to the nearest direction whose cosine with `start` (F, d) is COSINE."""
    for part in blocks(len(rows), rows.shape[1], rows.device):
        now, then = rows[part], start[part]
        cosine = (now * then).sum(1, keepdim=True)
        across = torch.nn.functional.normalize(now - cosine * then, dim=1)
        edge = torch.nn.functional.normalize(COSINE * then + (1 - COSINE**2) ** 0.5 * across, dim=1)
        now.copy_(torch.where(cosine < COSINE, edge, now))
