"""Scores that other programs compute: METEOR and SPICE by Java, CLIPScore by transformers.

The Java programs are in pycocoevalcap (the extra `coco`). Its parts have licences of their own, among them GPL, AGPL
and not for commercial use, so it is never imported: only its folder is located when a score is requested.
All functions raise UserError if something they need is missing or fails.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from captioner.errors import UserError

Words = Sequence[str]
START = 30.0  # seconds for java -version
METEOR_TIME = (120.0, 0.1)  # seconds to start, and for each image
SPICE_TIME = (600.0, 0.5)
LONGEST = 1 << 20  # characters of output
MODELS = ("stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar")
PROMPT = "A photo depicts "  # Hessel et al., section 3
BATCH = 32  # images that CLIP encodes together


def meteor(references: Sequence[Sequence[Words]], hypotheses: Sequence[Words]) -> float:
    """METEOR 1.5 (Denkowski & Lavie 2014) of all captions together, 0..1: coco-caption's number."""
    folder, java = _coco_folder() / "meteor", _java()
    jar = ["-jar", "meteor-1.5.jar", "-", "-", "-stdio", "-l", "en", "-norm"]  # coco-caption's options
    command = [java, "-Xmx2G", "-Dfile.encoding=UTF-8", *jar]
    with _running(command, folder, METEOR_TIME[0] + METEOR_TIME[1] * len(hypotheses)) as program:

        def request(parts: Sequence[str]) -> str:
            program.stdin.write(" ||| ".join(parts) + "\n")
            program.stdin.flush()
            return program.stdout.readline(LONGEST)

        statistics = []
        for refs, words in zip(references, hypotheses, strict=True):
            answer = request(["SCORE", *(_line(caption) for caption in (*refs, words))])
            if len([float(number) for number in answer.split()]) != 23:
                raise ValueError(f"METEOR answered {answer[:50]!r}")
            statistics.append(answer.strip())
        request(["EVAL", *statistics])  # answers with the score of each image, then that of all
        return [float(program.stdout.readline(LONGEST)) for _ in statistics][-1]


def spice(references: Sequence[Sequence[Words]], hypotheses: Sequence[Words]) -> float:
    """SPICE (Anderson et al. 2016), the mean F1 over the images, 0..1 in steps of 0.001.

    The program runs without its cache and its JSON output, which fail on Java 15 and newer, so the score is the one it
    prints, with three digits.
    """
    folder, java = _coco_folder() / "spice", _java()
    if not all((folder / "lib" / name).is_file() for name in MODELS):
        fetch = "python -m pycocoevalcap.spice.get_stanford_models"
        raise UserError(f"its Stanford models are not in {folder / 'lib'}: {fetch} downloads them (500 MB)")
    rows = [
        {"image_id": number, "test": _line(words), "refs": [_line(caption) for caption in refs]}
        for number, (refs, words) in enumerate(zip(references, hypotheses, strict=True))
    ]
    with tempfile.TemporaryDirectory() as temporary:
        file = Path(temporary, "captions.json")
        file.write_text(json.dumps(rows), encoding="utf-8")
        command = [java, "-Xmx8G", "-Dfile.encoding=UTF-8", "-Duser.language=en", "-jar", "spice-1.0.jar", str(file)]
        output = _output(command, folder, SPICE_TIME[0] + SPICE_TIME[1] * len(hypotheses))
    found = re.search(r"All tuples\s+f-score:\s+(\d\.\d+)", output)
    if not found:
        raise UserError(f"{java} printed no score: try another Java")
    return float(found[1])


def clip_score(
    paths: Sequence[str | os.PathLike], captions: Sequence[str], model: str, device: str | None = None
) -> float:
    """CLIPScore without references (Hessel et al. 2021, equation 1), usually 0..1: 2.5 · the mean cosine, or 0 if less.

    The cosine is that of CLIP's embeddings of an image and of "A photo depicts " followed by its caption. `model` is
    CLIP's name on the Hugging Face hub, such as openai/clip-vit-base-patch32 (the paper's), or its folder. It runs on
    `device`, by default cuda or cpu.
    """
    if importlib.util.find_spec("transformers") is None:
        raise UserError("transformers is not installed: pip install transformers")
    import torch

    from captioner.data.images import open_image
    from captioner.devices import best_device
    from captioner.progress import Bar

    device, total = device or best_device(), 0.0
    try:
        clip, processor = _load_clip(model)
        clip = clip.to(device)
        cut = {"truncation": True, "max_length": clip.config.text_config.max_position_embeddings, "padding": True}
        parts = range(0, len(paths), BATCH)
        for start in Bar(parts, "CLIPScore", unit="batches"):
            images = [open_image(path) for path in paths[start : start + BATCH]]
            texts = [PROMPT + caption for caption in captions[start : start + BATCH]]
            with torch.inference_mode():
                found = clip(**processor(text=texts, images=images, return_tensors="pt", **cut).to(device))
                total += float((found.image_embeds * found.text_embeds).sum())  # of unit vectors
    except UserError:
        raise
    except Exception as error:  # hubs, damaged files and accelerators raise exceptions of any kind
        raise UserError(f"{model}: {_first_line(str(error))}: name a CLIP that can be loaded") from error
    return max(0.0, 2.5 * total / len(paths))


def _load_clip(model: str) -> tuple[Any, Any]:
    import huggingface_hub
    import transformers

    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    huggingface_hub.utils.logging.set_verbosity_error()
    clip, info = transformers.CLIPModel.from_pretrained(model, output_loading_info=True)
    if info["missing_keys"]:
        raise ValueError(f"{len(info['missing_keys'])} weights of a CLIP are missing in it")
    return clip.eval(), transformers.CLIPProcessor.from_pretrained(model)


def _line(words: Words) -> str:
    """The words in one line without METEOR's separator."""
    return " ".join(" ".join(words).replace("|||", " ").split())


def _coco_folder() -> Path:
    """The folder of pycocoevalcap."""
    found = importlib.util.find_spec("pycocoevalcap")
    if found is None or not found.submodule_search_locations:
        raise UserError("pycocoevalcap is not installed: pip install pycocoevalcap")
    return Path(found.submodule_search_locations[0])


def _java() -> str:
    """The java on the PATH, if it starts."""
    java = shutil.which("java")
    if java is None:
        raise UserError("there is no java on the PATH: install a Java runtime")
    _output([java, "-version"], Path(), START)
    return java


def _output(command: list[str], folder: Path, seconds: float) -> str:
    """The output of a program that needs no input."""
    with _running(command, folder, seconds) as program:
        program.stdin.close()
        output = program.stdout.read(LONGEST)
        if len(output) == LONGEST:
            raise ValueError("endless output")
        if program.wait():
            raise ValueError(f"exit code {program.returncode}")
    return output


@contextlib.contextmanager
def _running(command: list[str], folder: Path, seconds: float) -> Iterator[Any]:
    """A process with text pipes; it and its children are killed when the block ends, or after `seconds`.

    Raises:
        UserError: the program cannot be started, or the block raised OSError or ValueError.
    """
    pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "encoding": "utf-8", "errors": "replace"}
    deadline = time.monotonic() + seconds
    with tempfile.TemporaryFile() as stderr:
        try:
            with subprocess.Popen(command, cwd=folder, stderr=stderr, start_new_session=True, **pipes) as program:
                watchdog = threading.Timer(seconds, _kill, [program])
                watchdog.start()
                try:
                    yield program
                finally:
                    watchdog.cancel()
                    _kill(program)
        except (OSError, ValueError) as error:
            stderr.seek(0)
            lines = (_first_line(stderr.read(LONGEST).decode(errors="replace")), _first_line(str(error)))
            late = time.monotonic() > deadline
            reason = f"took longer than {seconds:.0f} s" if late else f"failed: {': '.join(filter(None, lines))}"
            raise UserError(f"{command[0]} {reason}: try another Java") from error


def _kill(program: subprocess.Popen[str]) -> None:
    """Kill a process that has not been waited for, and its children."""
    if program.returncode is None:
        with contextlib.suppress(OSError):
            os.killpg(program.pid, signal.SIGKILL) if hasattr(os, "killpg") else program.kill()


def _first_line(text: str) -> str:
    """The first line that is not blank, up to 200 characters."""
    return next((line.strip()[:200] for line in text.splitlines() if line.strip()), "")
