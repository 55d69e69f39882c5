"""Captions with an exported ONNX model, with onnxruntime, numpy and pillow alone: no torch.

Example: python -m captioner.deploy.onnx_runner exported/ photo.jpg --beam 5
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from captioner.data.images import ImageError, open_image
from captioner.data.vocabulary import is_word
from captioner.errors import UserError

PAD, START, END, UNK = range(4)
State = tuple[np.ndarray, ...]


class Found(NamedTuple):
    """A caption: word ids, natural log-probability, what it is ranked by, and whether END came."""

    words: list[int]
    log_prob: float
    score: float
    ended: bool


def beam(
    step: Callable[[np.ndarray, State], tuple[np.ndarray, State]], state: State, search: dict[str, Any]
) -> list[Found]:
    """The n best captions of one image: :func:`captioner.decoding.search.beam` in numpy, without the rarer rules.

    Args:
        step: last words (R,) and state → log-probabilities (R, V), which are written to, and the state after.
        state: before the first word, one row.
        search: beam, n_best, max_length, min_length, length_norm, length_penalty of a SearchConfig.
    """
    width, best, longest = search["beam"], search["n_best"], search["max_length"]

    def norm(length: int) -> float:
        gnmt = ((5 + length) / 6) ** search["length_penalty"]
        return length if search["length_norm"] == "average" else gnmt

    said: list[list[int]] = [[]]
    live, words = np.zeros(1, np.float32), np.array([START])  # (R,) sums of log-probabilities, last words
    done: list[Found] = []
    for length in range(longest + 1):
        log_probs, state = step(words, state)
        log_probs[:, [PAD, START, UNK]] = -np.inf
        if length < search["min_length"]:
            log_probs[:, END] = -np.inf
        scores = (live[:, None] + log_probs).ravel()
        first = np.argpartition(-scores, min(2 * width, len(scores)) - 1)[: 2 * width]
        order = first[np.argsort(-scores[first], kind="stable")]
        parents, chosen, scores = order // log_probs.shape[1], order % log_probs.shape[1], scores[order]
        possible = scores > -np.inf
        ends = (chosen == END) & possible
        for i in np.flatnonzero(ends[:width]):
            done.append(Found(said[parents[i]], float(scores[i]), float(scores[i]) / norm(length + 1), True))
        done = sorted(done, key=lambda found: -found.score)[:width]
        if length == longest:
            ended = set(parents[:width][ends[:width]].tolist())
            cut = [
                Found(said[i], float(live[i]), float(live[i]) / norm(longest), False)
                for i in range(len(live))
                if i not in ended
            ]
            return (done + sorted(cut, key=lambda found: -found.score))[:best]
        going = np.flatnonzero(possible & (chosen != END))[:width]
        live, parents, words = scores[going], parents[going], chosen[going]
        said = [[*said[parent], int(word)] for parent, word in zip(parents, words, strict=True)]
        state = tuple(part[parents] for part in state)
        bound = live.max(initial=-np.inf) / norm(longest + 1)
        if len(done) == width or (len(done) >= best and done[best - 1].score >= bound):
            break
    return done[:best]


def check(config: dict[str, Any]) -> None:
    """Look at what a config.json says, whoever wrote it.

    Raises:
        ValueError, KeyError, TypeError: a value is missing, of another type or out of its range.
    """
    search, words = config["search"], config["words"]
    whole = {name: config[name] for name in ("image_size", "state", "context")}
    whole |= {name: search[name] for name in ("beam", "n_best", "max_length", "min_length")}
    for name, value in whole.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < (name not in ("context", "min_length")):
            raise ValueError(f"{name} is {str(value)[:60]!r}")
    if not isinstance(search["length_penalty"], (int, float)) or search["length_norm"] not in ("gnmt", "average"):
        raise ValueError("its search has another length_penalty or length_norm")
    if config["level"] not in ("word", "char") or not isinstance(words, list):
        raise ValueError("its words are no list of words or characters")
    for word in words[UNK + 1 :]:
        if not is_word(word, config["level"]):
            raise ValueError(f"{str(word)[:60]!r} is no {config['level']}")


class Runner:
    """An exported model.

    Args:
        folder: of ``captioner export --to onnx``.
        threads: of onnxruntime; 0 lets it choose.

    Raises:
        UserError: it is no such folder.
    """

    def __init__(self, folder: str | Path, threads: int = 0) -> None:
        import onnxruntime

        folder = Path(folder)
        try:
            self.config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            if self.config["format"] != 1:
                raise UserError(f"{folder} has the format {self.config['format']}, this one reads 1")
            check(self.config)
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = threads
            providers = onnxruntime.get_available_providers()
            self.encoder, self.step = (
                onnxruntime.InferenceSession(folder / f"{name}.onnx", options, providers)
                for name in ("encoder", "step")
            )
            size = self.config["image_size"]
            if self.encoder.get_inputs()[0].shape[1:] != [3, size, size]:
                raise ValueError(f"image_size is {size}, but the graph is of another")
        except UserError:
            raise
        except Exception as error:  # onnxruntime has many
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"{folder} is no model of captioner export --to onnx ({reason})") from None
        kinds = ("state", "context")
        self.inputs = ["words", *(f"{kind}_{n}" for kind in kinds for n in range(self.config[kind]))]
        self.needed = {entry.name for entry in self.step.get_inputs()}  # a context that nothing depends on is left out

    def search(self, images: np.ndarray, **search: Any) -> list[list[Found]]:
        """Images (B, 3, S, S) uint8 → of each its captions, best first; `search` are fields of SearchConfig."""
        asked = {**self.config["search"], **search}
        begun, k = self.encoder.run(None, {"images": images}), self.config["state"]
        answers = []
        for i in range(len(images)):
            state, context = (tuple(part[i : i + 1] for part in parts) for parts in (begun[:k], begun[k:]))
            answers.append(beam(self._stepper(context), state, asked))
        return answers

    def _stepper(self, context: State) -> Callable[[np.ndarray, State], tuple[np.ndarray, State]]:
        """The step of one image, for any number of beams."""
        repeated: dict[int, list[np.ndarray]] = {}

        def step(words: np.ndarray, state: State) -> tuple[np.ndarray, State]:
            rows = len(words)
            if rows not in repeated:
                repeated[rows] = [np.repeat(part, rows, axis=0) for part in context]
            given = zip(self.inputs, [words, *state, *repeated[rows]], strict=True)
            log_probs, *after = self.step.run(None, {name: part for name, part in given if name in self.needed})
            return log_probs, tuple(after)

        return step

    def text(self, found: Found) -> str:
        """The words of a caption."""
        space = " " if self.config["level"] == "word" else ""
        return space.join(self.config["words"][i] for i in found.words)

    def caption(self, source: Any, **search: Any) -> str:
        """The best caption of a source: a path, bytes, or a PIL image."""
        size = self.config["image_size"]
        image = open_image(source, size_hint=size).resize((size, size), Image.Resampling.BICUBIC)
        pixels = np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))[None]  # (1, 3, S, S)
        (found, *_), *_ = self.search(pixels, **search)
        return self.text(found)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print path, tab, caption; 1 if an image cannot be read, 2 for a folder that is no model."""
    parser = argparse.ArgumentParser(prog="python -m captioner.deploy.onnx_runner", description=__doc__)
    parser.add_argument("folder", help="of captioner export --to onnx")
    parser.add_argument("images", nargs="+", help="image files")
    parser.add_argument("--beam", type=int, help="beam width (1 = greedy); default: captioner predict's")
    parser.add_argument("--threads", type=int, default=0, help="of onnxruntime; 0: one a core")
    options = parser.parse_args(arguments)
    if options.beam is not None and options.beam < 1:
        parser.error(f"--beam is {options.beam}: expected 1 or more")
    failed = 0
    try:
        runner = Runner(options.folder, options.threads)
        for name in options.images:
            try:
                print(f"{name}\t{runner.caption(name, **({'beam': options.beam} if options.beam else {}))}", flush=True)
            except ImageError as error:
                print(f"captioner.deploy.onnx_runner: {error}", file=sys.stderr)
                failed = 1
    except UserError as error:
        print(f"captioner.deploy.onnx_runner: error: {error}", file=sys.stderr)
        return 2
    return failed


if __name__ == "__main__":
    sys.exit(main())
