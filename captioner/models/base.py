"""Images in, captions out, with any model that can begin a search."""

from __future__ import annotations

import math
import os
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from captioner.config import IMAGES, SearchConfig
from captioner.data.clips import load_pixels
from captioner.data.dataset import read_images
from captioner.data.vocabulary import END, PAD, START, UNK, Vocabulary
from captioner.decoding.constraints import BAD_ENDINGS
from captioner.decoding.search import Ids, State, Step, search
from captioner.errors import UserError

ImageSource = str | os.PathLike | Image.Image


@dataclass(frozen=True)
class Caption:
    """A caption with its scores.

    Attributes:
        text: the words, joined by spaces.
        log_prob: natural log-probability of the words and, where ended, of the END after them.
        score: log_prob over the length penalty; captions of an image are ranked by it.
        ended: False where the caption was cut off at max_length.
        word_log_probs: the terms of log_prob: of each word and, where ended, of END.
        attention: where it was asked for, a row for each of these terms: (terms, grid, grid) weights of the cells of
            the image, as :meth:`CaptionModel.look` gives them; on the CPU.
    """

    text: str
    log_prob: float
    score: float
    ended: bool
    word_log_probs: tuple[float, ...]
    attention: Tensor | None = field(default=None, compare=False, repr=False)

    @property
    def perplexity(self) -> float:
        """``exp(−log_prob / terms)``, 1 or more: how many words the model hesitated between, on average."""
        return math.exp(min(700.0, -self.log_prob / len(self.word_log_probs)))  # 700: of weights that are nonsense

    def as_dict(self) -> dict[str, Any]:
        """Plain values for a JSON file, with the probability of each word (and of END)."""
        return {
            "caption": self.text,
            "log_prob": self.log_prob,
            "score": self.score,
            "perplexity": self.perplexity,
            "ended": self.ended,
            "probabilities": [math.exp(term) for term in self.word_log_probs],
        }


class CaptionModel(nn.Module):
    """What captions images: a model, or several that act as one.

    Attributes:
        vocabulary: the words.
        image_size: side in pixels of the square that images are resized to.
        attends: whether there are maps of where it looks.
        frames: so many frames of a clip or images of an album get a caption together; 0: each image gets one.
    """

    vocabulary: Vocabulary
    image_size: int
    attends: bool = False
    frames: int = 0

    @property
    def device(self) -> torch.device:
        """Where the parameters lie."""
        return next(self.parameters()).device

    def begin(self, images: Tensor) -> tuple[Step, State, State]:
        """Images (I, 3, H, W) uint8, or their features (I, F) → step, state and context of a search."""
        raise NotImplementedError

    def features(self, images: Tensor) -> Tensor:
        """Images (I, 3, H, W) uint8 → features that `begin` and `look` take in their place."""
        raise NotImplementedError

    def look(self, images: Tensor, captions: Sequence[str]) -> list[Tensor]:
        """Where on the image each word is looked for.

        Args:
            images: (I, 3, H, W) uint8, or their features (I, P, F), on the model's device.
            captions: I captions, words of the vocabulary with spaces between them.

        Returns:
            Of each caption the weights (words + 1, grid, grid) of the cells, from the top left, with which each word
            and then the END after them is found. They add up to 1 for each word; with adaptive attention to 1 less
            the share of the visual sentinel, which stands for what the decoder knows without looking.

        Raises:
            UserError: the model has no attention.
        """
        raise UserError(NO_ATTENTION)

    @torch.inference_mode()
    def search(self, images: Tensor, config: SearchConfig, attention: bool = False) -> list[list[Caption]]:
        """The n best captions of each image, best first; the model should be in evaluation mode.

        An image may have fewer than n, or none, where no other caption keeps the rules that `config` asks for.

        Args:
            images: (I, 3, H, W) uint8 images or (I, F) features, on the model's device.
            config: beam width and so on. The seed of sampling is mixed with a checksum of what is handed in here.
            attention: fill in :attr:`Caption.attention`.

        Raises:
            UserError: the words that `config` names are not in the vocabulary, or contradict each other; or there is
                no attention.
        """
        if attention and not self.attends:
            raise UserError(NO_ATTENTION)
        if len(images) == 0:
            return []
        ids = search_ids(self.vocabulary, config)
        keys = [zlib.crc32(row.contiguous().numpy()) for row in images.cpu()] if config.sample else None
        if attention:  # the encoder works once, for the words and for the maps
            images = self.features(images)
        found = search(*self.begin(images), ids, config, keys)
        answers = []
        for each in zip(*(part.tolist() for part in found), strict=True):  # of an image, then of its captions
            captions = []
            for words, length, log_prob, score, ended, terms in zip(*each, strict=True):
                if score > -math.inf:
                    text = self.vocabulary.decode(words[:length])
                    captions.append(Caption(text, log_prob, score, ended, tuple(terms[: length + ended])))
            answers.append(captions)
        if attention:
            rows = [row for row, captions in enumerate(answers) for _ in captions]
            maps = iter(self.look(images[rows], [caption.text for captions in answers for caption in captions]))
            answers = [
                [replace(caption, attention=next(maps)[: len(caption.word_log_probs)]) for caption in captions]
                for captions in answers
            ]
        return answers

    def caption_files(
        self,
        paths: Sequence[Any],
        config: SearchConfig,
        batch_size: int = IMAGES,
        workers: int = 0,
        attention: bool = False,
    ) -> Iterator[list[Caption] | UserError]:
        """For each image file, in order, its captions (one at least) or why it has none; captioned in batches."""
        search_ids(self.vocabulary, config)  # complain before the first image is read
        rest = iter(paths)
        for images, errors in read_images(paths, self.image_size, batch_size, workers, self.frames):
            yield from self.answers(images, errors, [next(rest) for _ in errors], config, attention)

    def answers(
        self,
        images: Tensor,
        errors: Sequence[UserError | None],
        names: Sequence[Any],
        config: SearchConfig,
        attention: bool = False,
    ) -> Iterator[list[Caption] | UserError]:
        """For each image of a batch of :func:`captioner.data.dataset.read_images` its captions or why it has none."""
        found = iter(self.search(images.to(self.device), config, attention))
        for error, name in zip(errors, names, strict=True):
            yield error if error is not None else next(found) or UserError(f"{name}: {NO_CAPTION}")

    def caption(self, images: ImageSource | Sequence[ImageSource], attention: bool = False, **search: Any) -> Any:
        """Caption one image (a string comes back) or a list of them (a list of strings).

        Args:
            images: path or PIL image, or a list of these; for a model of `frames` each is a clip, the folder of an
                album, or an album of one image.
            attention: each image gets a :class:`Caption` with its `attention` instead of a string.
            search: fields of :class:`captioner.config.SearchConfig`: beam, length_penalty, sample and so on.
                With n_best each image gets a list of :class:`Caption` instead of a string.

        Raises:
            ImageError: an image cannot be read.
            UserError: an option that makes no sense, or rules that no caption keeps.
        """
        single = isinstance(images, (str, os.PathLike, Image.Image))
        many: Sequence[Any] = [images] if single else images  # type: ignore[assignment, list-item]
        size, config = self.image_size, replace(SearchConfig(), **search)
        together = max(1, IMAGES // max(1, self.frames))
        found: list[list[Caption]] = []
        for first in range(0, len(many), together):
            part = [load_pixels(one, size, self.frames) for one in many[first : first + together]]
            found += self.search(torch.stack(part).to(self.device), config, attention)
        if not all(found):
            raise UserError(f"image {found.index([])}: {NO_CAPTION}")
        answers = found if "n_best" in search else [best if attention else best.text for best, *_ in found]
        return answers[0] if single else answers


NO_CAPTION = "no caption keeps all the rules asked for: allow more words, a wider beam or fewer rules"
NO_ATTENTION = (
    "this model has no maps of where it looks: open one that was trained with attention (--model.attention soft "
    "--model.grid 7), not an ensemble"
)


def search_ids(vocabulary: Vocabulary, config: SearchConfig) -> Ids:
    """The words that `config` names by their ids, checked against each other and the vocabulary.

    Raises:
        UserError: a word the model does not have, or demands that no caption can meet.
    """

    def known(option: str, text: str) -> tuple[int, ...]:
        words = vocabulary.split(text)
        unknown = [word for word in words if word not in vocabulary.ids]
        if unknown:
            raise UserError(
                f"{option}: the model does not have the word {unknown[0]!r}, one of those its training captions "
                f"had too seldom or never: use another of its {len(vocabulary):,} words"
            )
        return tuple(vocabulary.ids[word] for word in words)

    for option in ("must", "must_not", "no_bad_ending", "no_repeat_word") if vocabulary.level == "char" else ():
        if getattr(config, option):
            raise UserError(f"{option} is a rule for words: this model writes characters")
    prefix, must = known("prefix", config.prefix), tuple(dict.fromkeys(known("must", config.must)))
    must_not = [vocabulary.ids[word] for word in vocabulary.split(config.must_not) if word in vocabulary.ids]
    for option, wanted in (("prefix", prefix), ("must", must)):
        for word in wanted:
            if word in must_not:
                raise UserError(f"{option} and must_not both name {vocabulary.words[word]!r}: take it from one of them")
    width, needed = config.beam // config.groups, len(prefix) + len(set(must) - set(prefix))
    if len(must) >= width:
        raise UserError(f"must names {len(must)} words: a beam (in each group) of {len(must) + 1} or more is needed")
    if needed > config.max_length:
        raise UserError(f"prefix and must need {needed} words: max_length is {config.max_length}")
    endings = tuple(vocabulary.ids[word] for word in BAD_ENDINGS if word in vocabulary.ids)
    return Ids(START, END, (PAD, START, UNK, *must_not), endings, prefix, must)
