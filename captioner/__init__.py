"""captioner: point it at COCO-style data and get a captioning model; point it at an image and get a caption."""

from typing import Any

__version__ = "0.1.0"
__all__ = ["__version__", "load"]


def load(paths: Any = None, device: str = "cpu") -> Any:
    """The model of a checkpoint, or the ensemble of several, whose ``caption`` method captions images.

    Args:
        paths: a file, the folder of a run, or a list of these; None is the shipped model.
        device: where the model runs, such as cpu or cuda.

    Raises:
        UserError: a checkpoint is missing or damaged, or does not fit the others.
    """
    from captioner.models.captioner import load

    return load(paths, device)
