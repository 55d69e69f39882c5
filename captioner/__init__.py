"""captioner: point it at COCO-style data and get a captioning model; point it at an image and get a caption."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    import torch

    from captioner import metrics
    from captioner.models.base import CaptionModel

__version__ = "0.1.0"
__all__ = ["__version__", "load", "metrics"]


def load(
    paths: str | os.PathLike | Sequence[str | os.PathLike] | None = None,
    device: str | torch.device = "auto",
    decoder: Any = None,
    encoder: Any = None,
) -> CaptionModel:
    """The model of a checkpoint, whose :meth:`~captioner.models.base.CaptionModel.caption` captions images.

    Args:
        paths: a file, the folder of a run, or hf://organisation/name; None is the shipped model. A list of these is
            the ensemble of their models, which have the same vocabulary.
        device: where the model runs, such as cpu or cuda:1. auto is cuda if there is one, else cpu, as on the command
            line.
        decoder, encoder: the class of a custom decoder, and a custom encoder or its class, if the checkpoint has them;
            see docs/extend.md.

    Raises:
        UserError: a checkpoint is missing or damaged, does not fit the others, or has a custom part that is not given;
            the device cannot be used.
    """
    from captioner.devices import resolve_device
    from captioner.models.captioner import load

    return load(paths, resolve_device(device), decoder, encoder)


def __getattr__(name: str) -> Any:
    """captioner.metrics, imported when it is first used."""
    if name == "metrics":
        return import_module("captioner.metrics")
    raise AttributeError(f"module 'captioner' has no attribute {name!r}")
