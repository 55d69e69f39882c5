"""Fine-tuned weights as int8 differences from the pretrained ones: half the size of fp16, and as exact."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

SCALE = ".scale"  # appended to the name of a tensor of differences
FINEST = -24  # of the exponents of the scales: the smallest power of two in fp16


def to_differences(tuned: Mapping[str, Tensor], start: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Each tensor (C, …) of two or more dimensions as int8 differences from `start` and a scale (C,); the others as is.

    ``tuned ≈ start + scale · difference``. The scale of a channel is the smallest power of two with which its largest
    difference fits into ±127, so that what is read back and written again stays the same. The error is at most half a
    scale: in a channel whose largest difference is 0.1, the scale is 1/1024.
    """
    found = dict[str, Tensor]()
    for name, value in tuned.items():
        if value.dim() < 2:
            found[name] = value
            continue
        change = value.detach().float() - start[name].float()
        largest = change.abs().flatten(1).amax(dim=1)  # (C,)
        scale = (largest / 127).log2().ceil().clamp_min(FINEST).exp2()
        found[name] = (change / _column(scale, change)).round().to(torch.int8)
        found[name + SCALE] = scale
    return found


def from_differences(stored: Mapping[str, Tensor], start: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse, in fp32; ValueError if a scale belongs to no differences, or `start` has no such tensor."""
    found = {name: value for name, value in stored.items() if not name.endswith(SCALE)}
    for name in stored.keys() - found.keys():
        scale, key = stored[name], name.removesuffix(SCALE)
        change, base = found.get(key), start.get(key)
        if change is None or base is None or change.shape != base.shape or scale.shape != change.shape[:1]:
            raise ValueError(f"{name} does not fit {key}")
        found[key] = base.float() + change.float() * _column(scale.float(), change)
    return found


def _column(scale: Tensor, like: Tensor) -> Tensor:
    """(C,) → (C, 1, …), to be multiplied with (C, …)."""
    return scale.view(-1, *[1] * (like.dim() - 1))
