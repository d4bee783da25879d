"""Linear layers whose weights are kept the way a processor likes to read them.

A decode step multiplies few rows by every weight of a stage, so it lasts as long as reading the
weights does, if the matrix product keeps up. On CPUs the one behind ``F.linear`` often does not:
it rearranges the weights at every call, or has no instructions for their type. These *forms* are
made once instead:

- ``OneDNN``: blocks in the order oneDNN reads them, same type as before; what torch's own compiler
  does to weights that stay the same.
- ``HalfWeights``: 16-bit floats, multiplied and summed as 32-bit ones by FBGEMM, for 16-bit models
  on processors without instructions for their type. No weight loses bits unless it is smaller
  than 2**-14, where the step is 2**-24.

Both compute a row the same way whatever the others hold. Neither knows when it is worth having.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

#: The kinds of modules that a form replaces; subclasses may do something else and are left alone.
LINEAR_TYPES = (nn.Linear, Conv1D)


class Form(Protocol):
    """How weights are kept."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        """``weight``: [out, in].

        Raises:
            RuntimeError: this processor, or this weight, cannot be kept so.
        """

    def __call__(self, inputs: Tensor) -> Tensor:
        """[..., in] to [..., out]."""


class OneDNN:
    """Blocks in the order oneDNN reads them."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight, None)
        self._bias = bias

    def __call__(self, inputs: Tensor) -> Tensor:
        output: Tensor = torch.ops.mkldnn._linear_pointwise(
            inputs, self._weight, self._bias, "none", [], ""
        )
        return output


class HalfWeights:
    """16-bit weights; 32-bit products and sums; inputs and outputs of the model's type."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        if weight.dtype not in (torch.bfloat16, torch.float16):
            raise RuntimeError(f"{weight.dtype} weights would lose precision")
        if weight.abs().max() > torch.finfo(torch.float16).max:
            raise RuntimeError("a weight is too large for a 16-bit float")
        self._dtype = weight.dtype
        self._packed = torch.ops.quantized.linear_prepack_fp16(
            weight.float(), None if bias is None else bias.float()
        )

    def __call__(self, inputs: Tensor) -> Tensor:
        output: Tensor = torch.ops.quantized.linear_dynamic_fp16(inputs.float(), self._packed)
        return output.to(self._dtype)


class PackedLinear(nn.Module):
    """In place of a linear layer, once its weights have taken a form."""

    def __init__(self, form: Form, weight: Tensor) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self._form = form
        # Says type and device to those who look for them; the numbers are the form's.
        self.weight = nn.Parameter(weight.new_empty(0), requires_grad=False)

    def forward(self, inputs: Tensor) -> Tensor:
        return self._form(inputs)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, {type(self._form).__name__}"


def matrix_of(module: nn.Module) -> tuple[Tensor, Tensor | None]:
    """The weight [out, in] and the bias [out] of one of ``LINEAR_TYPES``."""
    weight, bias = module.weight, module.bias
    assert isinstance(weight, Tensor)
    assert bias is None or isinstance(bias, Tensor)
    oriented = weight.t().contiguous() if isinstance(module, Conv1D) else weight
    return oriented.detach(), None if bias is None else bias.detach()


def linears_of(model: nn.Module) -> list[tuple[nn.Module, str, nn.Module]]:
    """Every linear layer as (the module it is in, its name there, itself)."""
    return [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if type(child) in LINEAR_TYPES
    ]
