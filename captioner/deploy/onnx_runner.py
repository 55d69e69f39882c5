"""Caption images with an exported ONNX model, onnxruntime, numpy and pillow, without torch.

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
from captioner.errors import UserError, one_line

PAD, START, END, UNK = range(4)  # repeated here, because captioner.decoding needs torch
State = tuple[np.ndarray, ...]
MOST = 1024  # of every number in a config.json
NORMS = ("gnmt", "average")


class Hypothesis(NamedTuple):
    """A caption: word ids, natural log-probability, score it is ranked by, and whether it has ended with END."""

    words: list[int]
    log_prob: float
    score: float
    ended: bool


def beam(
    step: Callable[[np.ndarray, State], tuple[np.ndarray, State]], state: State, search: dict[str, Any]
) -> list[Hypothesis]:
    """The n best captions of one image, best first; those that have ended come before those cut at max_length.

    It repeats the beam of :mod:`captioner.decoding.search`, which needs torch; tests/deploy/test_export.py
    compares the two.

    Args:
        step: last words (R,) and state → log-probabilities (R, V), which are modified here, and the next state.
        state: before the first word, one row.
        search: beam, n_best, max_length, min_length, length_norm, length_penalty of a SearchConfig.
    """
    width, n_best, longest = search["beam"], search["n_best"], search["max_length"]

    def norm(length: int) -> float:
        return length if search["length_norm"] == "average" else ((5 + length) / 6) ** search["length_penalty"]

    beams: list[list[int]] = [[]]  # R live beams, R = 1 before the first word
    live, words = np.zeros(1, np.float32), np.array([START])  # (R,) log-probabilities, last words
    done: list[Hypothesis] = []
    for length in range(longest + 1):
        log_probs, state = step(words, state)  # (R, V)
        log_probs[:, [PAD, START, UNK]] = -np.inf
        if length < search["min_length"]:
            log_probs[:, END] = -np.inf
        parents, words, scores = _best_continuations(live[:, None] + log_probs, 2 * width)  # (C,), C up to 2 width
        ends = words == END
        for i in np.flatnonzero(ends[:width]):
            done.append(Hypothesis(beams[parents[i]], float(scores[i]), float(scores[i]) / norm(length + 1), True))
        done = _ranked(done)[:width]
        if length == longest:
            ended = set(parents[:width][ends[:width]].tolist())
            cut = [i for i in range(len(live)) if i not in ended]
            rest = [Hypothesis(beams[i], float(live[i]), float(live[i]) / norm(longest), False) for i in cut]
            return (done + _ranked(rest))[:n_best]
        kept = np.flatnonzero(~ends)[:width]
        live, parents, words = scores[kept], parents[kept], words[kept]
        beams = [[*beams[parent], int(word)] for parent, word in zip(parents, words, strict=True)]
        state = tuple(tensor[parents] for tensor in state)
        best = live.max(initial=-np.inf)
        bound = best / norm(longest + 1)  # no live beam can score more
        enough = len(done) == width and max(found.log_prob for found in done) >= best
        if enough or (len(done) >= n_best and done[n_best - 1].score >= bound):
            break
    return done[:n_best]


def _best_continuations(scores: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Row, column and value of the `count` largest finite values of (R, V) scores, largest first."""
    flat = scores.ravel()
    best = np.argpartition(-flat, min(count, len(flat)) - 1)[:count]
    best = best[np.argsort(-flat[best], kind="stable")]
    best = best[flat[best] > -np.inf]
    rows, columns = np.divmod(best, scores.shape[1])
    return rows, columns, flat[best]


def _ranked(hypotheses: list[Hypothesis]) -> list[Hypothesis]:
    return sorted(hypotheses, key=lambda hypothesis: -hypothesis.score)


def check_config(config: dict[str, Any]) -> None:
    """Check the values of an untrusted config.json.

    Raises:
        ValueError, KeyError, TypeError: a value is missing, of another type or out of its range.
    """
    search, words = config["search"], config["words"]
    counts = {name: config[name] for name in ("image_size", "state", "context")}
    counts |= {name: search[name] for name in ("beam", "n_best", "max_length", "min_length")}
    for name, value in counts.items():
        least = name not in ("context", "min_length")
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= MOST:
            raise ValueError(f"{name} is {str(value)[:60]!r}")
    penalty = search["length_penalty"]
    if not isinstance(penalty, (int, float)) or not 0 <= penalty <= MOST or search["length_norm"] not in NORMS:
        raise ValueError("length_penalty or length_norm of its search is invalid")
    if config["level"] not in ("word", "char") or not isinstance(words, list):
        raise ValueError("words is not a list of words or characters")
    for word in words[UNK + 1 :]:
        if not is_word(word, config["level"]):
            raise ValueError(f"{str(word)[:60]!r} is not a {config['level']}")


class Runner:
    """An exported model.

    Args:
        folder: of ``captioner export --to onnx``.
        threads: number of threads of onnxruntime; 0: its default.

    Raises:
        UserError: the folder holds no valid exported model.
    """

    def __init__(self, folder: str | Path, threads: int = 0) -> None:
        import onnxruntime

        folder = Path(folder)
        try:
            self.config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            if self.config["format"] != 1:
                raise ValueError(f"its format is {self.config['format']}, expected 1")
            check_config(self.config)
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = threads
            providers = onnxruntime.get_available_providers()
            self.encoder, self.step = (
                onnxruntime.InferenceSession(folder / f"{name}.onnx", options, providers)
                for name in ("encoder", "step")
            )
            size = self.config["image_size"]
            if self.encoder.get_inputs()[0].shape[1:] != [3, size, size]:
                raise ValueError(f"image_size is {size}, but the encoder has another")
            state, tensors = self.config["state"], self.config["state"] + self.config["context"]
            if (len(self.encoder.get_outputs()), len(self.step.get_outputs())) != (tensors, state + 1):
                raise ValueError("its graphs have other tensors than its config")
        except Exception as error:  # onnxruntime has many kinds
            raise UserError(f"{folder} is not a model of captioner export --to onnx ({one_line(error)})") from None
        kinds = ("state", "context")
        self.inputs = ["words", *(f"{kind}_{n}" for kind in kinds for n in range(self.config[kind]))]
        self.needed = {entry.name for entry in self.step.get_inputs()}  # the exporter drops unused context tensors

    def search(self, images: np.ndarray, **search: Any) -> list[list[Hypothesis]]:
        """Images (B, 3, S, S) uint8 → captions of each, best first; `search` are fields of SearchConfig.

        UserError if the graphs do not run, or their tensors do not fit each other.
        """
        options = {**self.config["search"], **search}
        results, n_state = [], self.config["state"]
        try:
            tensors = self.encoder.run(None, {"images": images})
            for i in range(len(images)):
                row = tuple(tensor[i : i + 1] for tensor in tensors)
                results.append(beam(self._step_function(row[n_state:]), row[:n_state], options))
        except Exception as error:  # onnxruntime has many kinds
            raise UserError(f"the exported model does not run ({one_line(error)}): export it again") from None
        return results

    def _step_function(self, context: State) -> Callable[[np.ndarray, State], tuple[np.ndarray, State]]:
        """The step of one image, for any number of beams."""
        repeated: dict[int, list[np.ndarray]] = {}  # context by number of beams

        def step(words: np.ndarray, state: State) -> tuple[np.ndarray, State]:
            rows = len(words)
            if rows not in repeated:
                repeated[rows] = [np.repeat(tensor, rows, axis=0) for tensor in context]
            inputs = zip(self.inputs, [words, *state, *repeated[rows]], strict=True)
            log_probs, *after = self.step.run(None, {name: value for name, value in inputs if name in self.needed})
            return log_probs, tuple(after)

        return step

    def text(self, hypothesis: Hypothesis) -> str:
        """The words of a caption."""
        space = " " if self.config["level"] == "word" else ""
        return space.join(self.config["words"][i] for i in hypothesis.words)

    def caption(self, source: Any, **search: Any) -> str:
        """The best caption of a path, the bytes of a file, or a PIL image."""
        size = self.config["image_size"]
        image = open_image(source, size_hint=size).resize((size, size), Image.Resampling.BICUBIC)
        pixels = np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))[None]  # (1, 3, S, S)
        ((best, *_),) = self.search(pixels, **search)
        return self.text(best)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print path, tab, caption; return 1 if an image cannot be read, 2 if the folder is not a model."""
    parser = argparse.ArgumentParser(prog="python -m captioner.deploy.onnx_runner", description=__doc__)
    parser.add_argument("folder", help="written by captioner export --to onnx")
    parser.add_argument("images", nargs="+", help="image files")
    parser.add_argument("--beam", type=int, help="beam width (1 = greedy); default: captioner predict's")
    parser.add_argument("--threads", type=int, default=0, help="of onnxruntime; 0: one per core")
    options = parser.parse_args(arguments)
    if options.beam is not None and options.beam < 1:
        parser.error(f"--beam is {options.beam}: expected 1 or more")
    failed = 0
    try:
        runner = Runner(options.folder, options.threads)
        search = {"beam": options.beam} if options.beam else {}
        for name in options.images:
            try:
                print(f"{name}\t{runner.caption(name, **search)}", flush=True)
            except ImageError as error:
                print(f"captioner.deploy.onnx_runner: {error}", file=sys.stderr)
                failed = 1
    except UserError as error:
        print(f"captioner.deploy.onnx_runner: error: {error}", file=sys.stderr)
        return 2
    return failed


if __name__ == "__main__":
    sys.exit(main())
