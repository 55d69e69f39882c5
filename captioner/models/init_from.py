"""Begin a training with the weights of another checkpoint."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path

import torch

from captioner.errors import UserError
from captioner.models.captioner import Captioner, described, read_checkpoint

# Their rows are the words of the vocabulary.
BY_WORD = ("decoder.embedding.weight", "decoder.output.weight", "decoder.output.bias")
# The options that decide what fits.
SHAPES = ("cell", "layers", "hidden_size", "embedding_size")


@torch.no_grad()
def init_from(model: Captioner, path: str | os.PathLike) -> str:
    """Copy what fits of a checkpoint of any kind into `model`.

    A part (the embedding, the recurrent layers, the output layer, …) is taken whole, where the file has the same
    tensors in the same shapes, or left as it was. The rows of the embedding and of the output layer are matched by
    word; those of words that the file does not have stay as they were.

    Returns:
        One line: what was taken and what was left.

    Raises:
        UserError: the file is no checkpoint, or nothing in it fits.
    """
    header, theirs = read_checkpoint(Path(path))
    words = described(Path(path), header)[1]
    options = dict(header["model"])  # as they stand there: older ones lack newer options
    if words.level != model.vocabulary.level:
        levels = f"--data.level is {words.level} there and {model.vocabulary.level} here"
        raise UserError(f"nothing in {path} fits this model ({levels}): train with the level that it was made with")
    if options.get("tie_embeddings") and "decoder.embedding.weight" in theirs:
        theirs["decoder.output.weight"] = theirs["decoder.embedding.weight"]

    ours = model.weights()
    here = [i for i, word in enumerate(model.vocabulary.words) if word in words.ids]
    there = [words.ids[model.vocabulary.words[i]] for i in here]
    for name in BY_WORD:
        rows = theirs.pop(name, None)
        if name in ours and rows is not None and rows.shape == (len(words), *ours[name].shape[1:]):
            theirs[name] = ours[name].clone()
            theirs[name][here] = rows[there].to(ours[name])

    taken: list[str] = []
    left: list[str] = []
    for part in dict.fromkeys(map(_part, [*ours, *theirs])):
        mine, its = ({n: state[n] for n in state if _part(n) == part} for state in (ours, theirs))
        fits = {n: value.shape for n, value in mine.items()} == {n: value.shape for n, value in its.items()}
        (taken if fits else left).append(part)
        for name in mine if fits else ():
            mine[name].copy_(its[name])
    own = asdict(model.config)
    differ = [f"{n} is {options[n]} there and {own[n]} here" for n in SHAPES if options.get(n, own[n]) != own[n]]
    why = f" ({', '.join(differ)})" if differ else ""
    if not taken:
        raise UserError(f"nothing in {path} fits this model{why}: train with the --model options that it was made with")
    shared = f" ({len(here):,} of {len(model.vocabulary):,} words)"
    return f"{path}: took {', '.join(taken)}{shared}" + (f"; left {', '.join(left)}{why}" if left else "")


def _part(name: str) -> str:
    """decoder.rnn.weight_ih_l0 → rnn, encoder.resnet.conv1.weight → encoder."""
    return name.removeprefix("decoder.").split(".")[0]
