"""k latents per example on average over the batch (Bussmann, Leask, Nanda 2024, 2412.06410)."""

from __future__ import annotations

import torch
from torch import Tensor

from saebench.config import BatchTopKConfig, KSparseConfig
from saebench.saes import sparse
from saebench.saes.calibrate import NotCalibratedError, threshold_for
from saebench.saes.kernels import Precision
from saebench.saes.kernels_select import keys_of
from saebench.saes.ksparse import KSparseSAE
from saebench.saes.lr_rule import LrRule
from saebench.saes.sparse import SparseCodes


class BatchSparseSAE(KSparseSAE):
    """Training keeps the round(k * B) largest positive pre-activations of the batch, at least one; inference keeps
    those above a threshold, so that an example's code does not depend on the rest of its batch.

    The threshold is a saved buffer, at least 0, set from training rows after training (`calibrate`); NaN until then.
    """

    config: KSparseConfig
    threshold: Tensor

    def __init__(self, config: KSparseConfig, d_in: int) -> None:
        super().__init__(config, d_in)
        self.register_buffer("threshold", torch.tensor(torch.nan, dtype=torch.float32))

    def activate(self, pre: Tensor) -> Tensor:
        if not self.threshold >= 0:
            raise NotCalibratedError(f"{type(self).__name__}: the threshold is not calibrated, call calibrate(rows)")
        return pre * (pre > self.threshold)

    def select(self, centred: Tensor, precision: Precision = "float32", k: float | None = None) -> SparseCodes:
        k = max(k or self.config.k, 1 / len(centred))
        return sparse.encode_batchtopk(centred, self.W_enc, self.b_enc, k, precision)

    def ranks(self, codes: SparseCodes) -> Tensor:
        """Return (pairs,) how many pairs of the batch are larger; of equal ones, those of lower rows and latents."""
        places = torch.arange(codes.indices.numel(), device=codes.indices.device)
        return keys_of(codes.values.detach(), places).argsort(descending=True).argsort()

    def rows_per_rank(self, codes: SparseCodes) -> int:
        return codes.rows

    @torch.no_grad()
    def calibrate(self, rows: Tensor) -> None:
        """Set the threshold so that the mean L0 on training rows (N, d_in) is k, exactly: halfway between the
        round(k * N)-th largest pre-activation and the next. The same rows give the same threshold."""
        if len(rows) == 0:
            raise ValueError("rows: empty; give at least one training row to calibrate on")
        count = max(1, round(self.config.k * len(rows)))
        self.threshold.fill_(threshold_for(self.pre_activations_of(rows), count))

    def inference_values(self) -> dict[str, float]:
        return {"eval/threshold": float(self.threshold)}


class BatchTopKSAE(BatchSparseSAE):
    """BatchTopK: see `BatchSparseSAE`."""

    lr_rule = LrRule(share=0.8, width=1 / 4, width_by_l0=-1 / 4, steps=1 / 12)

    config: BatchTopKConfig
