"""The optimiser and its schedule, as shares of the run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from saebench.config import TrainConfig
from saebench.saes.kernels import on_host


def schedule(before: float, after: float, train: TrainConfig) -> float:
    """Return the factor of the learning rate for the step from share `before` to share `after` of the run: a linear
    rise from 0, then a fall to 0. The factor is above 0 in the first and the last step, too."""
    rise = min(1.0, after / train.warmup) if train.warmup else 1.0
    fall = min(1.0, (1 - before) / train.decay) if train.decay else 1.0
    return rise * fall


class Adam:
    """torch.optim.Adam over named parameters, fused if the device has such a kernel.

    Adam gets a transposed parameter in its memory layout: the fused kernel copies tensors that are not contiguous, and
    then takes seven times as long. A parameter's learning rate is multiplied by its factor (1 if `factors` does not
    name it). `state_dict` and `load_state_dict` use the parameters' own shapes.
    """

    def __init__(
        self,
        parameters: Iterable[tuple[str, nn.Parameter]],
        factors: Mapping[str, float],
        train: TrainConfig,
        lr: float,
    ) -> None:
        self._parameters = dict(parameters)
        self._turned = {name for name, p in self._parameters.items() if p.ndim == 2 and not p.is_contiguous()}
        self._seen = {name: nn.Parameter(self._laid_out(name, p.detach())) for name, p in self._parameters.items()}
        groups: dict[float, list[nn.Parameter]] = {}
        for name, seen in self._seen.items():
            groups.setdefault(factors.get(name, 1.0), []).append(seen)
        self._adam = torch.optim.Adam(
            [{"params": params, "factor": factor} for factor, params in groups.items()],
            lr=lr,
            betas=(train.beta1, train.beta2),
            eps=train.eps,
            fused=all(seen.device.type in ("cpu", "cuda") for seen in self._seen.values()),
            capturable=any(seen.device.type == "cuda" for seen in self._seen.values()),
        )

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """Return torch's param_groups, one per factor."""
        return self._adam.param_groups

    @torch.no_grad()
    def step(self, lr: Tensor | float, clip: float) -> None:
        """Make one step at learning rate `lr` (a number, or a float32 tensor () on the parameters' device), after
        clipping the gradients to a total norm of `clip`."""
        for name, parameter in self._parameters.items():
            gradient = parameter.grad
            self._seen[name].grad = None if gradient is None else self._laid_out(name, gradient).contiguous()
        clip_gradients([seen.grad for seen in self._seen.values() if seen.grad is not None], clip)
        for group in self._adam.param_groups:
            group["lr"] = lr * group["factor"]
        self._adam.step()
        self._adam.zero_grad()  # so that the parameters' gradients hold the last references to their memory

    def state_dict(self) -> dict[str, Tensor]:
        """Return step and moments by "parameter.key"."""
        return {
            f"{name}.{key}": self._laid_out(name, value)
            for name, seen in self._seen.items()
            for key, value in self._adam.state[seen].items()
        }

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Load a state that `state_dict` returned."""
        for name, seen in self._seen.items():
            self._adam.state[seen] = {
                key.removeprefix(f"{name}."): self._laid_out(name, value).to(seen.device, copy=True).contiguous()
                for key, value in state.items()
                if key.startswith(f"{name}.")
            }

    def _laid_out(self, name: str, tensor: Tensor) -> Tensor:
        """Convert between a parameter's shape and its memory layout (the same transposition both ways)."""
        return tensor.t() if name in self._turned and tensor.ndim == 2 else tensor


def clip_gradients(gradients: list[Tensor], most: float) -> None:
    """Clip as torch's clip_grad_norm_ does; skip a factor of 1 if reading it does not make the host wait."""
    norms = [torch.linalg.vector_norm(gradient) for gradient in gradients]
    factor = (most / (torch.linalg.vector_norm(torch.stack(norms)) + 1e-6)).clamp_max(1.0)
    if not on_host(factor) or float(factor) != 1.0:
        torch._foreach_mul_(gradients, factor)
