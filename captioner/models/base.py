"""The base of models that caption images, by a search over their step function."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import islice
from numbers import Integral
from typing import Any, Literal, overload

import torch
from torch import Tensor, nn

from captioner.config import IMAGE_BATCH_SIZE, MAX_LENGTH, SearchConfig
from captioner.data.dataset import clips_per_batch, read_images
from captioner.data.sources import ImageSource, is_single, load_source
from captioner.data.vocabulary import END, PAD, START, UNK, Vocabulary
from captioner.decoding.constraints import BAD_ENDINGS
from captioner.decoding.search import Ids, State, Step, search
from captioner.errors import UserError, counted
from captioner.models.confidence import UNSURE, Calibration

Concept = tuple[str, float]  # its name and its probability


@dataclass(frozen=True)
class Caption:
    """A caption with its scores.

    Attributes:
        text: the words, joined by spaces.
        log_prob: natural log-probability of the words and, if ended, of END.
        score: log_prob divided by the length penalty; the captions of an image are ranked by it.
        ended: False for a caption cut off at max_length.
        word_log_probs: the terms of log_prob: of each word and, if ended, of END.
        attention: if requested, the maps of :meth:`CaptionModel.attention_maps` for these terms, on the CPU.
        concepts: what :meth:`CaptionModel.concepts` sees in the image.
        confidence: of the best caption of an image, the probability that it is right, 0..1, by the calibration of the
            model; None of other captions, and where the model has no calibration or one of another search.
    """

    text: str
    log_prob: float
    score: float
    ended: bool
    word_log_probs: tuple[float, ...]
    attention: Tensor | None = field(default=None, compare=False, repr=False)
    concepts: tuple[Concept, ...] = field(default=(), compare=False, repr=False)
    confidence: float | None = None

    @property
    def unsure(self) -> bool:
        """Whether the caption is likelier wrong than right; False without a confidence."""
        return self.confidence is not None and self.confidence < UNSURE

    @property
    def perplexity(self) -> float:
        """``exp(−log_prob / terms)``, 1 or more: the mean number of equally likely words to choose from."""
        return math.exp(min(700.0, -self.log_prob / len(self.word_log_probs)))  # more than 700 overflows

    @property
    def probabilities(self) -> list[float]:
        """The probability of each word and, if ended, of END, each given those before it."""
        return [math.exp(term) for term in self.word_log_probs]

    def as_dict(self) -> dict[str, Any]:
        """The caption as plain values for JSON, with its :attr:`probabilities` and, if it has one, its confidence."""
        numbers = {"log_prob": self.log_prob, "score": self.score, "perplexity": self.perplexity, "ended": self.ended}
        sure = {} if self.confidence is None else {"confidence": self.confidence}
        return {"caption": self.text, **sure, **numbers, "probabilities": self.probabilities}


@contextmanager
def evaluation_mode(module: nn.Module) -> Iterator[None]:
    """Turn off dropout, and keep the statistics of BatchNorms; afterwards each part has its mode again."""
    trained = [part for part in module.modules() if part.training]
    module.eval()
    try:
        yield
    finally:
        for part in trained:
            part.training = True


class CaptionModel(nn.Module):
    """A model that captions images, or several that act as one.

    Attributes:
        vocabulary: the words.
        image_size: side in pixels of the square that images are resized to.
        has_attention: whether there are attention maps.
        has_concepts: whether concepts of the image are an input.
        max_length: words of a caption where a search names no number: as many as in the captions of its training.
        frames: up to this many frames of a clip or images of an album share a caption; 0: each image has one.
        calibration: how perplexities become confidences, if that was fitted (captioner calibrate).
    """

    vocabulary: Vocabulary
    image_size: int
    has_attention: bool = False
    has_concepts: bool = False
    max_length: int = MAX_LENGTH
    frames: int = 0
    calibration: Calibration | None = None

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def start_search(self, images: Tensor) -> tuple[Step, State, State]:
        """Step, state and context of :func:`captioner.decoding.search.search`, from images or their features."""
        raise NotImplementedError

    def features(self, images: Tensor) -> Tensor:
        """Images (I, 3, H, W) uint8 → features (I, F) or (I, P, F), which the other methods take in their place."""
        raise NotImplementedError

    def attention_maps(self, images: Tensor, captions: Sequence[str]) -> list[Tensor]:
        """The attention weights of each word of I given captions, whose words are separated by spaces.

        Returns:
            For each caption (words + 1, grid, grid) weights of the cells, from the top left, at the steps that predict
            each word and then END. Those of a step add up to 1, with adaptive attention to 1 minus the weight of the
            visual sentinel.

        Raises:
            UserError: the model has no attention.
        """
        raise UserError(NO_ATTENTION)

    def concepts(self, images: Tensor) -> list[tuple[Concept, ...]]:
        """The most probable concepts of each image, or of its features, best first; none without `has_concepts`."""
        return [()] * len(images)

    def has_confidence(self, config: SearchConfig) -> bool:
        """Whether the best captions of a search have a confidence: the model is calibrated for it."""
        return self.calibration is not None and not self.calibration.differences(config.for_model(self.max_length))

    def _with_confidence(self, caption: Caption) -> Caption:
        assert self.calibration is not None
        return replace(caption, confidence=self.calibration.confidence(caption.perplexity))

    @torch.inference_mode()
    def search(self, images: Tensor, config: SearchConfig, attention: bool = False) -> list[list[Caption]]:
        """The n best captions of each image, best first, without dropout, also of a model in training mode.

        An image has fewer than n captions, or none, where no other caption satisfies the constraints of `config`.

        Args:
            images: (I, 3, H, W) uint8 or features, on the model's device.
            config: how to search. The seed of sampling is mixed with a checksum of each row of `images`.
            attention: fill in :attr:`Caption.attention`.

        Raises:
            UserError: words in `config` are unknown or contradict each other, or the model has no attention.
        """
        if attention and not self.has_attention:
            raise UserError(NO_ATTENTION)
        if len(images) == 0:
            return []
        with evaluation_mode(self):
            return self._search(images, config.for_model(self.max_length), attention)

    def _search(self, images: Tensor, config: SearchConfig, attention: bool) -> list[list[Caption]]:
        ids = search_ids(self.vocabulary, config)
        keys = [zlib.crc32(row.contiguous().numpy()) for row in images.cpu()] if config.sample else None
        if attention or self.has_concepts:  # encode the images once
            images = self.features(images)
        concepts = self.concepts(images)
        found = search(*self.start_search(images), ids, config, keys)
        captions = [
            [
                Caption(
                    self.vocabulary.decode(words[:n]), log_prob, score, ended, tuple(terms[: n + ended]), None, seen
                )
                for words, n, log_prob, score, ended, terms in zip(*parts, strict=True)
                if score > -math.inf
            ]
            for seen, *parts in zip(concepts, *(part.tolist() for part in found), strict=True)
        ]
        if self.has_confidence(config):
            captions = [[*map(self._with_confidence, each[:1]), *each[1:]] for each in captions]
        if attention:
            rows = [row for row, each in enumerate(captions) for _ in each]
            maps = iter(self.attention_maps(images[rows], [caption.text for each in captions for caption in each]))
            captions = [[replace(c, attention=next(maps)[: len(c.word_log_probs)]) for c in each] for each in captions]
        return captions

    def caption_files(
        self,
        paths: Sequence[Any],
        config: SearchConfig,
        batch_size: int = IMAGE_BATCH_SIZE,
        workers: int = 0,
        attention: bool = False,
    ) -> Iterator[list[Caption] | UserError]:
        """Caption image files in batches: for each, in order, its captions (one at least) or the error."""
        search_ids(self.vocabulary, config.for_model(self.max_length))  # fail before the first image is read
        names = iter(paths)
        for images, errors in read_images(paths, self.image_size, batch_size, workers, self.frames):
            found = iter(self.search(images.to(self.device), config, attention))
            for error, name in zip(errors, names, strict=False):  # the names of this batch
                yield error or next(found) or UserError(f"{name}: {NO_CAPTION}")

    @overload
    def caption(
        self,
        images: ImageSource,
        attention: Literal[False] = False,
        *,
        scores: Literal[False] = False,
        n_best: None = None,
        **options: Any,
    ) -> str: ...
    @overload
    def caption(
        self,
        images: Iterable[ImageSource],
        attention: Literal[False] = False,
        *,
        scores: Literal[False] = False,
        n_best: None = None,
        **options: Any,
    ) -> list[str]: ...
    @overload
    def caption(
        self, images: ImageSource, attention: bool = ..., *, scores: bool = ..., n_best: None = None, **options: Any
    ) -> Caption: ...
    @overload
    def caption(
        self,
        images: Iterable[ImageSource],
        attention: bool = ...,
        *,
        scores: bool = ...,
        n_best: None = None,
        **options: Any,
    ) -> list[Caption]: ...
    @overload
    def caption(
        self, images: ImageSource, attention: bool = ..., *, scores: bool = ..., n_best: int, **options: Any
    ) -> list[Caption]: ...
    @overload
    def caption(
        self, images: Iterable[ImageSource], attention: bool = ..., *, scores: bool = ..., n_best: int, **options: Any
    ) -> list[list[Caption]]: ...
    def caption(
        self,
        images: ImageSource | Iterable[ImageSource],
        attention: bool = False,
        *,
        scores: bool = False,
        n_best: int | None = None,
        batch_size: int = IMAGE_BATCH_SIZE,
        allow_urls: bool = False,
        **search: Any,
    ) -> Any:
        """Caption one image, or several: a list of captions in their order.

        A caption is a string; with `scores` or `attention` it is a :class:`Caption`, and with `n_best` each image has a
        list of these, best first.

        Args:
            images: a path, a PIL image, an array (H, W, 3) or (H, W), a tensor (3, H, W), the bytes of a file, or a
                file opened for reading bytes. Numbers are uint8, or floats from 0 to 1. Several are a list or any
                iterable of these, read as they are needed, or an array or tensor of four dimensions. For a model of
                `frames` each is a video, the folder of an album, or an album of one image.
            attention: fill in :attr:`Caption.attention`.
            scores: give each caption with its log-probability, those of its words, and what is seen in the image.
            n_best: give so many captions of each image.
            batch_size: images, or frames of clips, that are read and captioned together.
            allow_urls: fetch images at addresses such as https://… and s3://…, also within the local network.
            search: the other fields of :class:`captioner.config.SearchConfig`.

        Raises:
            UserError: an unreadable image, an unknown or invalid option, or no caption satisfies the constraints.
        """
        if n_best is not None:
            search["n_best"] = n_best
        config = SearchConfig.of(search, ("attention", "scores", "batch_size", "allow_urls"))
        if not isinstance(batch_size, Integral) or batch_size < 1:
            raise UserError(f"batch_size is {batch_size!r:.60}: expected a whole number, 1 or more")
        single = is_single(images)
        named = [("the image", images)] if single else ((f"image {i}", each) for i, each in enumerate(images))  # type: ignore[arg-type]
        pixels = (load_source(each, name, self.image_size, self.frames, allow_urls) for name, each in named)
        found: list[list[Caption]] = []
        while batch := [*islice(pixels, clips_per_batch(batch_size, self.frames))]:
            found += self.search(torch.stack(batch).to(self.device), config, attention)
        if not all(found):
            raise UserError(f"image {found.index([])}: {NO_CAPTION}")
        captions = found if n_best else [best if attention or scores else best.text for best, *_ in found]
        return captions[0] if single else captions


NO_CAPTION = "no caption satisfies all constraints: allow more words, a wider beam or fewer constraints"
NO_ATTENTION = "this model has no attention maps: open one trained with --model.attention (no ensemble)"


def search_ids(vocabulary: Vocabulary, config: SearchConfig) -> Ids:
    """The ids of the words in `config`; UserError if one is unknown or no caption can satisfy all constraints."""
    must_not = vocabulary.split(config.must_not)
    for option in ("must", "must_not", "prefix"):
        if (text := getattr(config, option)).strip() and not vocabulary.split(text):
            raise UserError(f"{option} is {text!r}, which has no word: name words, or leave it out")

    def ids(option: str, text: str) -> tuple[int, ...]:
        words = vocabulary.split(text)
        for word in words:
            if word not in vocabulary.ids:
                size = f"{counted(len(vocabulary), 'word')}"
                raise UserError(f"{option}: {word!r} is not in the vocabulary of {size}: use another word")
            if word in must_not:
                raise UserError(f"{option} and must_not both name {word!r}: remove it from one")
        return tuple(vocabulary.ids[word] for word in words)

    for option in ("must", "must_not", "no_bad_ending", "no_repeat_word") if vocabulary.level == "char" else ():
        if getattr(config, option):
            raise UserError(f"{option} constrains words: this model writes characters")
    prefix, must = ids("prefix", config.prefix), tuple(dict.fromkeys(ids("must", config.must)))
    width, needed = config.beam // config.groups, len(prefix) + len(set(must) - set(prefix))
    if len(must) >= width:
        raise UserError(
            f"must names {counted(len(must), 'word')}: a beam (in each group) of {len(must) + 1} or more is needed"
        )
    if config.max_length and needed > config.max_length:
        raise UserError(f"prefix and must need {counted(needed, 'word')}: max_length is {config.max_length}")
    endings = tuple(vocabulary.ids[word] for word in BAD_ENDINGS if word in vocabulary.ids)
    avoided = [vocabulary.ids[word] for word in must_not if word in vocabulary.ids]
    return Ids(START, END, (PAD, START, UNK, *avoided), endings, prefix, must)
