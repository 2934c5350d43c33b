"""Non-negative orthogonal matching pursuit as the encoder of its own dictionary.

Trained end to end: the pursuit computes codes with the current dictionary, and the dictionary descends the gradient of
the error. Given its picks, a code is close to the least-squares optimum, so by the envelope theorem the codes need no
gradient: d FVU / d W_dec[f] = -2 a_f r / (B variance), with r the residual. There is no W_enc and no b_enc.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from saebench.config import OMPConfig
from saebench.saes import sparse
from saebench.saes.base import SAE
from saebench.saes.calibrate import NotCalibratedError, threshold_for
from saebench.saes.gram_memory import check_memory
from saebench.saes.kernels import Precision, affine, blocks, on_host, product
from saebench.saes.loss import Loss, Moment
from saebench.saes.lr_rule import LrRule
from saebench.saes.pursuit import pursue
from saebench.saes.pursuit_codes import Pursuit
from saebench.saes.sparse import SparseCodes

GRAM_WIDTH = 16_384
"""Largest dict_size for which the Gram matrix is kept (1 GiB); above it, picks are made among candidates."""
GRAM_EVERY = 8
"""Maximum number of training steps on a CPU between two computations of the Gram matrix, which costs half a step. A GPU
computes it in every step, so that all steps are the same work and can be recorded."""
GRAM_MOVED = 0.02
"""Mean squared distance of the decoder's rows from those of the Gram matrix above which it is recomputed earlier. A
stale Gram matrix gives wrong picks, these cause large steps, and large steps make it more stale: at a high lr a
training diverged that way (experiments/pursuit)."""
MOST_PICKS = 4.0
"""With target_l0: maximum number of picks per example, in units of the target."""
_GAIN = 0.3
"""With target_l0: change of log(threshold) per step, per relative deviation of L0 from the target."""
_START_ROWS = 1024


class OMPSAE(SAE):
    """latents = the pursuit's values, at most k; with target_l0, picks continue while the largest product with the
    residual exceeds a threshold, which a controller adjusts in training and `calibrate` sets for the mean L0."""

    lr_rule = LrRule(share=1.3, l0=-1 / 4, width=3 / 8, width_by_l0=-1 / 4)

    config: OMPConfig
    threshold: Tensor

    def __init__(self, config: OMPConfig, d_in: int) -> None:
        super().__init__(config, d_in)
        if (config.k or 0) > self.dict_size:
            raise ValueError(f"k {config.k} must not exceed dict_size {self.dict_size}")
        if (config.target_l0 or 0) >= self.dict_size:
            raise ValueError(f"target_l0 must be below dict_size {self.dict_size}")
        most = config.k or math.ceil(MOST_PICKS * (config.target_l0 or 0))
        self.picks = min(most, self.dict_size)
        self.register_buffer("threshold", torch.tensor(0.0 if config.k else torch.nan, dtype=torch.float32))
        self._gram: Tensor | None = None
        self._gram_of: tuple[int, int | None] | None = None
        self._training_rows: Tensor | None = None
        self._training_gram: Tensor | None = None
        self._age = 0

    def make_encoder(self) -> None:
        """Create no parameters: the dictionary is its own encoder."""

    def start_encoder(self) -> None:
        pass

    def decay_encoder(self, share: Tensor | float) -> None:
        """Do nothing: there is no encoder."""

    def initialise_from(self, z: Tensor) -> None:
        if self.config.target_l0 is not None:
            self.threshold.fill_(self._threshold_for(z[:_START_ROWS] - self.b_dec))

    # --- codes ---

    def check_memory(self) -> None:
        if self.dict_size <= GRAM_WIDTH:
            check_memory(self.dict_size, self.W_dec.device, copies=2)  # in training, and in its evaluations

    def activate(self, pre: Tensor) -> Tensor:  # noqa: ARG002
        raise TypeError("a pursuit needs the embedding, not its pre-activations alone: call encode(x)")

    def pre_activations(self, z: Tensor, precision: Precision = "float32") -> Tensor:
        """Return the products of z - b_dec (B, d_in) with the decoder's rows; the first pick is the largest."""
        return affine(z - self.b_dec, self.W_dec.t(), self.W_dec.new_zeros(self.dict_size), precision)

    def latents_of(self, z: Tensor) -> Tensor:
        found = self.pursue(z.detach() - self.b_dec)
        dense = found.values.new_zeros(len(z), self.dict_size)
        return dense.scatter_add_(1, found.indices, found.values)

    @torch.no_grad()
    def pursue(self, centred: Tensor) -> Pursuit:
        """Return the pursuit of centred = z - b_dec (B, d_in) by the inference rule."""
        if not self.threshold >= 0:
            raise NotCalibratedError("OMPSAE: the threshold is not calibrated, call calibrate(rows)")
        return self._pursue(centred, self.gram(), self.threshold)

    def _pursue(
        self, centred: Tensor, gram: Tensor | None, least: Tensor | float, precision: Precision = "float32"
    ) -> Pursuit:
        together = self.config.at_a_time > 1
        every = self.config.at_a_time if together else self.config.refit_every
        return pursue(centred, self.W_dec, gram, self.picks, every, least, precision, together=together)

    @torch.no_grad()
    def gram(self) -> Tensor | None:
        """Return the Gram matrix of the decoder's rows (dict_size, dict_size), computed once per state of the decoder;
        None if the dictionary is too wide."""
        state = (self.W_dec.data_ptr(), None if self.W_dec.is_inference() else self.W_dec._version)
        if self._gram is None or self._gram_of != state:
            if self.dict_size <= GRAM_WIDTH:
                check_memory(self.dict_size, self.W_dec.device, copies=1)
            self._gram, self._gram_of = _products(self.W_dec), state
        return self._gram

    # --- training ---

    def loss(self, x: Tensor, moment: Moment) -> Loss:
        z = self.training_input(x)
        with torch.no_grad():
            gram = self._gram_in_training()
            found = self._pursue(z - self.b_dec, gram, self.threshold, moment.precision)
            codes = _codes(found, self.dict_size)
        fvu = self.share(z - sparse.decode(codes, self.W_dec, self.b_dec))
        loss = Loss.of(fvu, fvu, codes, {})
        if self.config.target_l0 is not None:
            self.threshold.mul_(torch.exp(_GAIN * (loss.l0 / self.config.target_l0 - 1).clamp(-1, 1)))
        return loss

    def _gram_in_training(self) -> Tensor | None:
        """Return the Gram matrix. On a CPU it may be some steps old; the sweeps on the residual correct for that."""
        if self.dict_size > GRAM_WIDTH:
            return None
        if not on_host(self.W_dec):
            return _products(self.W_dec)
        if self._training_rows is None or self._age >= GRAM_EVERY or self._moved(self._training_rows) > GRAM_MOVED:
            self._training_rows, self._training_gram, self._age = self.W_dec.detach().clone(), None, 0
        if self._training_gram is None:
            self._training_gram = _products(self._training_rows)
        self._age += 1
        return self._training_gram

    def _moved(self, since: Tensor) -> float:
        parts = blocks(self.dict_size, self.d_in, since.device)
        return sum(float((self.W_dec[rows] - since[rows]).square().sum()) for rows in parts) / self.dict_size

    def training_state(self) -> dict[str, Tensor]:
        if self._training_rows is None:
            return {}
        return {"gram_rows": self._training_rows, "gram_age": torch.tensor(self._age)}

    def load_training_state(self, state: dict[str, Tensor]) -> None:
        self._training_rows = state["gram_rows"].to(self.W_dec.device) if "gram_rows" in state else None
        self._training_gram, self._age = None, int(state.get("gram_age", 0))

    @torch.no_grad()
    def calibrate(self, rows: Tensor) -> None:
        """With target_l0: set the threshold so that the pursuit of training rows (N, d_in) makes target_l0 picks on
        average, exactly except for picks that refits drop. The same rows give the same threshold."""
        if self.config.target_l0 is None:
            return
        if len(rows) == 0:
            raise ValueError("rows: empty; give at least one training row to calibrate on")
        z, _ = self.preprocessing(self.check(rows.to(self.b_dec.device)))
        self.threshold.fill_(self._threshold_for(z - self.b_dec))

    def _threshold_for(self, centred: Tensor) -> float:
        """Return the threshold. A pick is made if its product and those of all earlier picks exceed the threshold."""
        found = self._pursue(centred, self.gram(), 0.0)
        count = max(1, round((self.config.target_l0 or 0) * len(centred)))
        return threshold_for([found.gains.cummin(1).values], count)

    def inference_values(self) -> dict[str, float]:
        return {"eval/threshold": float(self.threshold)} if self.config.target_l0 is not None else {}


def _codes(found: Pursuit, dict_size: int) -> SparseCodes:
    """Return the codes as pairs, without padding if the host can count them without a sync."""
    rows, k = found.values.shape
    if not on_host(found.values):
        offsets = torch.arange(rows + 1, device=found.values.device) * k
        return SparseCodes(found.values.flatten(), found.indices.flatten(), offsets, dict_size)
    kept = found.values != 0
    offsets = torch.zeros(rows + 1, dtype=torch.int64)
    torch.cumsum(kept.sum(1), 0, out=offsets[1:])
    return SparseCodes(found.values[kept], found.indices[kept], offsets, dict_size)


def _products(rows: Tensor) -> Tensor | None:
    if len(rows) > GRAM_WIDTH:
        return None
    return product(rows.detach(), rows.detach().t())
