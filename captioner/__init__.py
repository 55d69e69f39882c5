"""captioner: point it at COCO-style data and get a captioning model; point it at an image and get a caption."""

from typing import Any

__version__ = "0.1.0"
__all__ = ["__version__", "load"]


def load(path: Any = None, device: str = "cpu") -> Any:
    """Open a checkpoint, or several as an ensemble; see :func:`captioner.models.captioner.load`. Imports torch."""
    from captioner.models.captioner import load

    return load(path, device)
