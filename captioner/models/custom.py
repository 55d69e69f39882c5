"""Decoders and encoders of the caller's own: a checkpoint names their classes and holds their tensors, never code."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from captioner.config import CUSTOM, ModelConfig
from captioner.errors import UserError
from captioner.models.base import evaluation_mode

# (architecture, size of the vocabulary, size of a feature) → a decoder: its class, for one
DecoderClass = Callable[[ModelConfig, int, int], nn.Module]


def custom_parts(header: Mapping[str, Any]) -> dict[str, str]:
    """The class names of the custom decoder and encoder in the header of a checkpoint, as far as there are any."""
    encoder = str(header["model"].get("encoder"))
    found = {"decoder": str(header.get("decoder", "")), "encoder": encoder.partition(CUSTOM)[2]}
    return {part: name for part, name in found.items() if name}


def check_given(path: str | os.PathLike, header: Mapping[str, Any], decoder: Any = None, encoder: Any = None) -> None:
    """Raise UserError unless the caller gives the custom parts that a checkpoint has, and no others."""
    saved, given = custom_parts(header), {"decoder": decoder, "encoder": encoder}
    if any(given[part] is None for part in saved):
        parts = " and ".join(f"a custom {part}, {name[:60]}" for part, name in saved.items())
        options = ", ".join(f"{part}={name[:60]}" for part, name in saved.items())
        raise UserError(f"{path} has {parts}: load it from Python, by captioner.load({str(path)!r}, {options})")
    for part, value in given.items():
        if value is not None and part not in saved:
            raise UserError(f"{path} has no custom {part}: leave out {part}=")


def make_encoder(encoder: nn.Module | Callable[[], nn.Module]) -> nn.Module:
    """A copy of a module, or what its class or a function makes."""
    return copy.deepcopy(encoder) if isinstance(encoder, nn.Module) else encoder()


def make_decoder(decoder: DecoderClass, config: ModelConfig, vocabulary_size: int, feature_size: int) -> nn.Module:
    """What the class of a custom decoder, or a function, makes; UserError unless it is a decoder."""
    if isinstance(decoder, nn.Module) or not callable(decoder):
        raise UserError(f"decoder is {decoder!r:.60}: expected its class, or a function of the arguments of the class")
    made = decoder(config, vocabulary_size, feature_size)
    if not isinstance(made, nn.Module) or not (hasattr(made, "start") and hasattr(made, "step")):
        name = type(made).__name__
        raise UserError(f"decoder makes a {name}: expected a module with start, step and forward (docs/extend.md)")
    return made


@torch.no_grad()
def probe_features(encoder: nn.Module | None, config: ModelConfig) -> tuple[int, ...]:
    """The shape of an image's features, (F,) or (P, F), that a custom encoder makes of (B, 3, S, S) uint8.

    UserError if it makes anything else, or another number of cells than the config's `grid` has, or if its class has
    another name than in the config.
    """
    name, size = type(encoder).__name__, config.image_size
    if encoder is None or name != config.custom_encoder:
        given = "no encoder" if encoder is None else f"a {name}"
        raise UserError(f"model.encoder is {config.encoder}, and {given} is given: encoder={config.custom_encoder}()")
    device = next((tensor.device for tensor in encoder.state_dict().values()), torch.device("cpu"))
    with evaluation_mode(encoder):
        features: Any = encoder(torch.zeros(2, 3, size, size, dtype=torch.uint8, device=device))
    expected = (
        f"expected floats (B, F){f' or (B, {config.grid**2}, F), for model.grid {config.grid}' * bool(config.grid)}"
    )
    if not isinstance(features, Tensor) or not features.is_floating_point():
        raise UserError(f"{name} makes a {getattr(features, 'dtype', type(features).__name__)} of images: {expected}")
    shape = tuple(features.shape)
    if shape[0] != 2 or len(shape) != 2 + bool(config.grid) or (config.grid and shape[1] != config.grid**2):
        raise UserError(f"{name} makes features {shape} of two images (2, 3, {size}, {size}): {expected}")
    return shape[1:]
