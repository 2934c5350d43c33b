"""The base class of the k-sparse architectures: training through (values, indices), AuxK for dead latents."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from saebench.config import KSparseConfig
from saebench.saes import sparse
from saebench.saes.base import SAE
from saebench.saes.kernels import Precision, latents_of
from saebench.saes.kernels_select import keys_of
from saebench.saes.loss import Dead, Loss, Moment
from saebench.saes.penalty import ramp
from saebench.saes.refit import refit
from saebench.saes.sparse import SparseCodes


def default_k_aux(d_in: int) -> int:
    """Return the power of two nearest to d_in / 2 on a log scale (Gao et al. 2024, A.2)."""
    half = max(1, d_in // 2)
    low = 1 << (half.bit_length() - 1)
    return low if half * half <= 2 * low * low else 2 * low


WIDEST = 4
"""With k on average, the latents of a training example of which the values are refined, in units of the mean."""


class KSparseSAE(SAE):
    """loss = FVU + aux_coeff * AuxK; no tensor of shape (B, dict_size) is kept."""

    config: KSparseConfig

    def __init__(self, config: KSparseConfig, d_in: int) -> None:
        super().__init__(config, d_in)
        for name, k in (("k", config.k), ("k_start", config.k_start or 0)):
            if k > self.dict_size:
                raise ValueError(f"{name} {k:g} must not exceed dict_size {self.dict_size}")
        self.k_aux = config.k_aux or default_k_aux(d_in)

    @abstractmethod
    def select(self, centred: Tensor, precision: Precision = "float32", k: float | None = None) -> SparseCodes:
        """Return training codes of centred = z - b_dec (B, d_in), with k latents per example; None: the config's k."""

    def errors(self, z: Tensor, codes: SparseCodes) -> tuple[Tensor, Tensor, Tensor]:
        """Return (reconstruction term of the loss, FVU with all codes, residual z - z_hat (B, d_in) with all codes);
        the last two are detached."""
        if self.config.training_sweeps:
            return self._refined_errors(z, codes)
        residual = z - sparse.decode(codes, self.W_dec, self.b_dec)
        fvu = self.share(residual)
        return fvu, fvu.detach(), residual.detach()

    def _refined_errors(self, z: Tensor, codes: SparseCodes) -> tuple[Tensor, Tensor, Tensor]:
        """Return `errors` with refined values, which train the decoder, plus the FVU of the unrefined values, which
        trains the encoder. A gradient through refined values diverges (experiments/pursuit)."""
        as_they_are = self.share(z - sparse.decode(codes, self.W_dec.detach(), self.b_dec.detach()))
        mean = -(-codes.indices.numel() // codes.rows)
        width = mean if isinstance(self.config.k, int) else min(WIDEST * mean, self.dict_size)
        better = refit(z - self.b_dec.detach(), self.W_dec, codes, self.config.training_sweeps, width)
        residual = z - sparse.decode(codes.with_values(better), self.W_dec, self.b_dec)
        fvu = self.share(residual)
        return fvu + as_they_are, fvu.detach(), residual.detach()

    def loss(self, x: Tensor, moment: Moment) -> Loss:
        z = self.training_input(x)
        centred = z - self.b_dec
        codes = self.training_codes(centred, moment)
        error, fvu, residual = self.errors(z, codes)
        total = error
        parts: dict[str, Tensor | float] = {}
        if moment.dead is not None and self.config.aux_coeff > 0:
            aux = self.auxk(centred, residual, moment.dead, moment.precision)
            total, parts["train/aux_loss"] = error + self.config.aux_coeff * aux, aux.detach()
        if self.config.multi_coeff > 0:
            multi = self.multi(z, centred, moment.precision)
            total, parts["train/multi_loss"] = total + self.config.multi_coeff * multi, multi.detach()
        return Loss.of(total, fvu, codes, parts)

    def training_codes(self, centred: Tensor, moment: Moment) -> SparseCodes:
        """Return the codes that train: with `k_start`, those of k_start latents, of which only as many stay as k is at
        this share of the run. Their number of pairs does not change, so that a GPU can replay the step."""
        start = self.config.k_start
        if start is None:
            return self.select(centred, moment.precision)
        codes = self.select(centred, moment.precision, start)
        k = start + (self.config.k - start) * ramp(moment.progress, self.config.k_anneal)
        kept = self.ranks(codes) < k * self.rows_per_rank(codes)
        return codes.with_values(torch.where(kept, codes.values, 0.0))

    def ranks(self, codes: SparseCodes) -> Tensor:
        """Return (pairs,) how many pairs of the same example are larger; of equal ones, the lower latent is."""
        width = codes.indices.numel() // codes.rows
        keys = keys_of(codes.values.detach().abs().view(-1, width), codes.indices.view(-1, width))
        return keys.argsort(dim=1, descending=True).argsort(dim=1).flatten()

    def rows_per_rank(self, codes: SparseCodes) -> int:  # noqa: ARG002 - of the batch, where a batch shares its k
        """Return the number of examples among which `ranks` counts."""
        return 1

    def multi(self, z: Tensor, centred: Tensor, precision: Precision = "float32") -> Tensor:
        """Return the reconstruction term at `multi_factor` times k, on the first `multi_share` of the batch only: as
        many pairs as in the main loss if share times factor is 1."""
        rows = max(1, round(len(z) * self.config.multi_share))
        k = min(self.config.k * self.config.multi_factor, self.dict_size)
        return self.errors(z[:rows], self.select(centred[:rows], precision, k))[0]

    def auxk(self, centred: Tensor, residual: Tensor, dead: Dead, precision: Precision = "float32") -> Tensor:
        """Return the share of the residual's variance that the k_aux strongest dead latents leave unexplained.

        The residual (B, d_in) is a constant; dead latents reconstruct it without b_dec, from their own pre-activations,
        so that the gradient reaches their encoder columns. Negative pre-activations count, too (for signed types, by
        magnitude): a latent that is negative on every example would otherwise get no gradient and never revive. Returns
        0 if no latent is dead, or the residual has no variance (a batch of one).
        """
        if dead.index.numel() == 0:
            return residual.new_zeros(())
        bias = self.b_enc[dead.index].masked_fill(~dead.still_dead, -torch.inf)
        k = min(self.k_aux, dead.index.numel())
        W_enc, W_dec = latents_of(self.W_enc, dead.index, 1), latents_of(self.W_dec, dead.index, 0)
        magnitude = self.config.signed
        codes = sparse.encode_topk(centred, W_enc, bias, k, precision, signed=True, magnitude=magnitude)
        values = torch.where(codes.values.isneginf(), 0.0, codes.values)
        rebuilt = sparse.decode(codes.with_values(values), W_dec)
        spread, least = (residual - residual.mean(0)).square().sum(), 1e-9 * len(residual) * self.variance
        share = (residual - rebuilt).square().sum() / torch.maximum(spread, least)
        return torch.where(dead.still_dead.any() & (spread > least), share, 0.0)
