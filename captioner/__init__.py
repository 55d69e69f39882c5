"""captioner: point it at COCO-style data and get a captioning model; point it at an image and get a caption."""

from typing import Any

__version__ = "0.1.0"
__all__ = ["__version__", "load"]


def load(path: str | None = None, device: str = "cpu") -> Any:
    """Open a checkpoint; see :meth:`captioner.model.Captioner.load`, which this calls (torch is imported only now)."""
    from captioner.model import Captioner

    return Captioner.load(path, device=device)
