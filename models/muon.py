"""Muon: an optimiser for matrices, which learns more from each token than AdamW does here."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def orthogonalise(matrices: Tensor) -> Tensor:
    """Bring all singular values near 1 by a quintic Newton-Schulz iteration.

    Args:
        matrices: shape (count, rows, columns).
    """
    tall = matrices.size(1) > matrices.size(2)
    x = matrices.mT if tall else matrices
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    result: Tensor = x.mT if tall else x
    return result


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised, for matrices. All matrices of a group have the same shape.

    ``torch.optim.Muon`` does the same in bfloat16, one matrix at a time, which is many times
    slower on a CPU without bfloat16 arithmetic.
    """

    def __init__(self, groups: list[dict[str, Any]], momentum: float = 0.95) -> None:
        super().__init__(groups, {"lr": 0.0, "momentum": momentum, "weight_decay": 0.1})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]  # takes no closure
        for group in self.param_groups:
            # Layers that do not run yet have no gradient.
            params = [p for p in group["params"] if p.grad is not None]
            if params:
                self._step_matrices(params, group)

    def _step_matrices(self, params: list[Tensor], group: dict[str, Any]) -> None:
        momentum = group["momentum"]
        nesterov = []
        for param in params:
            assert param.grad is not None
            average = self.state[param].setdefault("average", torch.zeros_like(param))
            average.lerp_(param.grad, 1 - momentum)
            nesterov.append(param.grad.lerp(average, momentum))
        updates = orthogonalise(torch.stack(nesterov))
        scale = max(1.0, updates.size(1) / updates.size(2)) ** 0.5
        for param, update in zip(params, updates, strict=True):
            param.mul_(1 - group["lr"] * group["weight_decay"])
            param.add_(update, alpha=-group["lr"] * scale)
