"""Initialise a model with the weights of another checkpoint."""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import asdict

import torch
from torch import Tensor

from captioner.config import ModelConfig
from captioner.data.vocabulary import SPECIAL, Vocabulary
from captioner.errors import UserError
from captioner.models.captioner import Captioner, fitting_weights
from captioner.models.checkpoint import DEFAULTS, inherited_options, parse_header, read_checkpoint, read_header

WORD_ROWS = ("decoder.embedding.weight", "decoder.output.weight", "decoder.output.bias")  # a row per word
ANY_VALUE = ("image_size", "dropout", "input_dropout", "feature_dropout", "cell_dropout")  # of the same weights
SIZES = ("cell", "layers", "hidden_size", "embedding_size")  # the options that decide which parts fit


def describe_options(config: ModelConfig, path: str | os.PathLike, given: Collection[str]) -> list[str]:
    """Which model options a training took from the checkpoint, and which are `given` instead of its own, if any."""
    theirs, ours = inherited_options(path)["model"], asdict(config)
    taken = [n for n, value in theirs.items() if ours[n] == value != DEFAULTS[n] and f"model.{n}" not in given]
    other = [f"{name} {ours[name]} (there {value})" for name, value in theirs.items() if ours[name] != value]
    lines = [f"{path}: model options taken: {', '.join(f'{name} {theirs[name]}' for name in taken)}"] if taken else []
    return [*lines, f"{path}: model options given instead: {', '.join(other)}"] if other else lines


def check_same_model(config: ModelConfig, path: str | os.PathLike) -> None:
    """UserError unless a model of this architecture begins as the trained captioner in the checkpoint `path`.

    It may have other dropout, images of other sizes, more trained stages, and concepts that the checkpoint lacks.
    """
    what = "train.objective scst goes on from a trained model"
    if read_header(path).get("kind") == "language_model":
        raise UserError(f"{what}, and {path} is a language model, which saw no image: train with cross-entropy first")
    theirs, ours = inherited_options(path)["model"], asdict(config)
    may_differ = {name: ours[name] for name in ANY_VALUE}
    may_differ |= {name: ours[name] for name in ("second_size", "grid") if ours[name] and theirs[name]}
    if theirs["concepts"] == "none":
        may_differ["concepts"] = ours["concepts"]
    may_differ["trainable_layers"] = max(theirs["trainable_layers"], ours["trainable_layers"])
    differ = [
        f"model.{name} is {value} there and {ours[name]} here"
        for name, value in theirs.items()
        if ours[name] != may_differ.get(name, value)
    ]
    if differ:
        raise UserError(f"{what}, and {path} is of another architecture ({'; '.join(differ)}): leave out these options")


@torch.no_grad()
def init_from(model: Captioner, path: str | os.PathLike) -> str:
    """Copy the parts of a checkpoint that fit into `model`; return one line that names them and the others.

    A part (the embedding, the recurrent layers, the output layer, …) is copied whole if the checkpoint has the same
    tensors with the same shapes, and otherwise left unchanged. The rows of the embedding and of the output layer are
    matched by word; rows of words that the checkpoint does not have begin near the mean of the others.
    The stages of the encoder that were trained there and are trained here are copied. Concepts that the checkpoint does
    not have add nothing at first: the model begins as the checkpoint.
    UserError if nothing fits, or if stages were trained there that are frozen here, beside others that are not.
    """
    header, theirs = read_checkpoint(path)
    config, vocabulary = parse_header(path, header)
    if header.get("kind") != "language_model":
        theirs = fitting_weights(path, header, theirs)
    if config.trainable_layers > model.config.trainable_layers > 0:
        stages = f"{config.trainable_layers} stages of its encoder"
        raise UserError(f"{path} was trained in {stages}: --model.trainable_layers {config.trainable_layers} or more")
    options = header["model"]  # without the options that are newer than the checkpoint
    if vocabulary.level != model.vocabulary.level:
        levels = f"--data.level is {vocabulary.level} there and {model.vocabulary.level} here"
        raise UserError(f"nothing in {path} fits this model ({levels}): train with its level")
    if options.get("tie_embeddings") and "decoder.embedding.weight" in theirs:
        theirs["decoder.output.weight"] = theirs["decoder.embedding.weight"]
    ours = model.weights()
    old = _match_words(ours, theirs, model.vocabulary, vocabulary)
    copied: list[str] = []
    left: list[str] = []
    for part in dict.fromkeys(map(_part, [*ours, *theirs])):
        mine, other = ({name: state[name] for name in state if _part(name) == part} for state in (ours, theirs))
        if part == "encoder" and other:
            mine = {name: value for name, value in mine.items() if name in other}  # of more stages
        fits = {name: value.shape for name, value in mine.items()} == {n: value.shape for n, value in other.items()}
        (copied if fits else left).append(part)
        for name in mine if fits else ():
            mine[name].copy_(other[name])
        if part == "concepts" and mine and not other:
            mine["decoder.concepts.project.weight"].zero_()
    own = asdict(model.config)
    differences = [f"{n} is {options[n]} there and {own[n]} here" for n in SIZES if options.get(n, own[n]) != own[n]]
    why = f" ({', '.join(differences)})" if differences else ""
    if not copied:
        raise UserError(f"nothing in {path} fits this model{why}: train with its --model options")
    new, lost = len(model.vocabulary) - old, len(vocabulary) - old
    words = f" ({old - len(SPECIAL):,} old words, {new:,} new, {lost:,} lost)"
    return f"{path}: took {', '.join(copied)}{words}" + (f"; left {', '.join(left)}{why}" if left else "")


def _match_words(
    ours: dict[str, Tensor], theirs: dict[str, Tensor], own_words: Vocabulary, their_words: Vocabulary
) -> int:
    """Put the rows per word in `theirs` into the order of `own_words`; the number of shared words.

    The rows of the others are the mean of theirs and a tenth of the deviation of a random one from it, so that the new
    words are no likelier than the old ones, and differ.
    """
    here = [row for row, word in enumerate(own_words.words) if word in their_words.ids]
    there = [their_words.ids[own_words.words[row]] for row in here]
    for name in WORD_ROWS:
        rows = theirs.pop(name, None)
        if name in ours and rows is not None and rows.shape == (len(their_words), *ours[name].shape[1:]):
            rows = rows.to(ours[name])
            drawn = rows[torch.randint(len(rows), (len(own_words),), generator=torch.Generator().manual_seed(0))]
            theirs[name] = rows.mean(dim=0) + 0.1 * (drawn - rows.mean(dim=0))
            theirs[name][here] = rows[there]
    return len(here)


def _part(name: str) -> str:
    """decoder.rnn.weight_ih_l0 → rnn, encoder.resnet.conv1.weight → encoder."""
    return name.removeprefix("decoder.").split(".")[0]
