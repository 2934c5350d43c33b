"""The training loss of a batch, and the state of the run that it depends on."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from torch import Tensor

from saebench.saes.kernels import Precision
from saebench.saes.sparse import Codes


@dataclass(frozen=True)
class Dead:
    """Latents that AuxK may revive. `index` (M,) has a fixed length, which avoids a device-to-host sync; only entries
    with `still_dead` (M,) true are valid."""

    index: Tensor
    still_dead: Tensor


@dataclass(frozen=True)
class Moment:
    """The state of the run that a loss depends on."""

    progress: Tensor | float = 0.0
    """Completed share of the run, 0 to 1."""
    coeff: Tensor | float = 0.0
    """Current weight of the sparsity penalty (from the schedule or the controller)."""
    dead: Dead | None = None
    """Dead latents; None: AuxK is off."""
    precision: Precision = "float32"
    """Precision of the encoder's matrix product."""


@dataclass(frozen=True)
class Loss:
    """The training loss of one batch, on its device."""

    total: Tensor
    """Scalar to minimise."""
    fvu: Tensor
    """Squared error over the training variance, scalar, detached."""
    l0: Tensor
    """Mean number of latents that fire, scalar, detached."""
    fired: Tensor
    """(dict_size,) bool: fired on some example of the batch."""
    codes: Codes
    """The training codes, with their gradient."""
    parts: dict[str, Tensor | float] = field(default_factory=dict)
    """Further scalars to record, detached, by metric key."""
    margins: Tensor | None = None
    """By how much each pre-activation exceeds its latent's threshold, in the shape of the codes' values, detached; None
    for an architecture without a penalty."""

    @classmethod
    def of(
        cls,
        total: Tensor,
        fvu: Tensor,
        codes: Codes,
        parts: dict[str, Tensor | float],
        margins: Tensor | None = None,
    ) -> Loss:
        """Return the loss of a batch with these training codes."""
        firing = codes.firing()
        margins = None if margins is None else margins.detach()
        return cls(total, fvu.detach(), firing.sum() / codes.rows, firing > 0, codes, parts, margins)

    def plus(self, coeff: float, penalty: Tensor, name: str) -> Loss:
        """Return this loss with a weighted penalty added, recorded as `name`."""
        return replace(self, total=self.total + coeff * penalty, parts={**self.parts, name: penalty.detach()})
