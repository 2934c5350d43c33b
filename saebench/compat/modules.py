"""SAEs as torch modules that compute their own loss, for the user's own training loop.

    sae = sae_classes[cfg["sae_type"]](cfg)
    optimizer = torch.optim.Adam(sae.parameters(), lr=cfg["lr"])
    for _ in range(steps):
        output = sae(store.next_batch())
        output["loss"].backward()
        sae.make_decoder_weights_and_grad_unit_norm()
        optimizer.step()
        optimizer.zero_grad()
    sae.eval()

`.sae` is the saebench SAE inside, and the losses are its losses. With a `cfg` they are in units of the mean squared
error per element, so that `l1_coeff` is the weight of the L1 term beside that error; with `input_unit_norm` the error
is that of the layer-normed input, whose variance is 1 per element. Codes (`feature_acts`, `encode`) are saebench's:
with `input_unit_norm` an input has length 1 instead of sqrt(act_size), so codes are smaller by that factor.

The first training batch sets everything that depends on data: variance, b_dec, starting biases and thresholds (call
`start` to use more rows). BatchTopK needs a threshold at inference: training keeps a running average of the smallest
activation selected in a batch, and `calibrate(rows)` sets the threshold exactly; evaluating before either raises
NotCalibratedError.
"""

from __future__ import annotations

from saebench.compat.settings import Settings
from saebench.compat.trainable import TrainableSAE
from saebench.config import BatchTopKConfig, JumpReLUConfig, Preprocess, TopKConfig, VanillaConfig


def _preprocess(settings: Settings) -> Preprocess:
    return "layer_norm" if settings.input_unit_norm else "none"


class VanillaSAE(TrainableSAE):
    """ReLU with an L1 penalty."""

    kind = "vanilla"

    @staticmethod
    def typed(settings: Settings) -> VanillaConfig:
        return VanillaConfig(dict_size=settings.dict_size, preprocess=_preprocess(settings), l1_coeff=settings.l1_coeff)


class TopKSAE(TrainableSAE):
    """Exactly top_k latents per example."""

    kind = "topk"

    @staticmethod
    def typed(settings: Settings) -> TopKConfig:
        return TopKConfig(
            dict_size=settings.dict_size,
            preprocess=_preprocess(settings),
            k=int(settings.top_k),
            aux_coeff=settings.aux_penalty,
            k_aux=settings.top_k_aux,
        )


class BatchTopKSAE(TrainableSAE):
    """top_k latents per example on average over the batch; a threshold at inference."""

    kind = "batchtopk"

    @staticmethod
    def typed(settings: Settings) -> BatchTopKConfig:
        return BatchTopKConfig(
            dict_size=settings.dict_size,
            preprocess=_preprocess(settings),
            k=settings.top_k,
            aux_coeff=settings.aux_penalty,
            k_aux=settings.top_k_aux,
        )


class JumpReLUSAE(TrainableSAE):
    """A learned threshold per latent; l1_coeff weighs the L0."""

    kind = "jumprelu"

    @staticmethod
    def typed(settings: Settings) -> JumpReLUConfig:
        return JumpReLUConfig(
            dict_size=settings.dict_size,
            preprocess=_preprocess(settings),
            l0_coeff=settings.l1_coeff,
            bandwidth=settings.bandwidth,
        )
