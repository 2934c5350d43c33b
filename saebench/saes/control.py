"""Controls: SAEs of which a part stays at its random start (arXiv 2602.14111). Only the amount by which a trained SAE's
score exceeds its control's is evidence of learning.

frozen_decoder: W_dec does not move. frozen_encoder: W_enc does not move, its biases and thresholds do. soft_decoder:
every row of W_dec keeps a cosine of at least `COSINE` with its start. The start is random even if the config's `start`
is not: training rows as a start would already carry information.
"""

from __future__ import annotations

import torch
from torch import Tensor

from saebench.saes.kernels import blocks

COSINE = 0.8


@torch.no_grad()
def keep_near(rows: Tensor, start: Tensor) -> None:
    """Rotate unit rows (F, d), in place, to the nearest directions with a cosine to `start` (F, d) of at least COSINE,
    if theirs is smaller."""
    for part in blocks(len(rows), rows.shape[1], rows.device):
        now, then = rows[part], start[part]
        cosine = (now * then).sum(1, keepdim=True)
        across = torch.nn.functional.normalize(now - cosine * then, dim=1)
        edge = torch.nn.functional.normalize(COSINE * then + (1 - COSINE**2) ** 0.5 * across, dim=1)
        now.copy_(torch.where(cosine < COSINE, edge, now))
