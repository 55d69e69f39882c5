"""The entry points of torch.hub.

``torch.hub.load("OWNER/captioner", "captioner")`` clones the repository; a clone is opened with its path and
``source="local"``. The weights are those of the repository's ``checkpoints/``.
"""

dependencies = ["torch", "numpy", "PIL", "psutil", "regex", "safetensors", "tqdm"]


def captioner(checkpoint=None, device="auto"):
    """The shipped model, or another: ``model.caption("photo.jpg", beam=5)`` is a caption.

    Args:
        checkpoint: None for the shipped model; a file or the folder of a run, or a list of these for an ensemble.
        device: cpu, cuda or cuda:1; auto is cuda if there is one, else cpu.

    Returns:
        A ``torch.nn.Module`` in evaluation mode, as ``captioner.load`` returns it.
    """
    from captioner import load

    return load(checkpoint, device)
