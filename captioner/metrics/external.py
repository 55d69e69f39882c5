"""Scores that other programs compute: METEOR and SPICE by Java, CLIPScore by transformers, each where it can be had.

Java's are in pycocoevalcap (the extra `coco`), whose parts have licences of their own, among them GPL, AGPL and not for
commercial use. It is looked for when a score is asked for, and never imported.
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
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from captioner.errors import UserError

Words = Sequence[str]
START = 30.0  # seconds in which Java must say its version
METEOR_TIME = (120.0, 0.1)  # seconds to start, and for each image
SPICE_TIME = (600.0, 0.5)
LONGEST = 1 << 20  # characters that a program may print
MODELS = ("stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar")
PROMPT = "A photo depicts "  # Hessel et al., section 3
BATCH = 32  # that CLIP sees together


class Unavailable(Exception):
    """A score that cannot be had here: one line that says why and what to do."""


def meteor(references: Sequence[Sequence[Words]], hypotheses: Sequence[Words]) -> float:
    """METEOR 1.5 (Denkowski & Lavie 2014) of all captions together, 0..1: coco-caption's number.

    Args:
        references: words of one or more captions of each image.
        hypotheses: words of a caption of each image.

    Raises:
        Unavailable: no pycocoevalcap, no Java that starts, or no answer from it.
    """
    folder, java = _coco_folder() / "meteor", _java()
    jar = ["-jar", "meteor-1.5.jar", "-", "-", "-stdio", "-l", "en", "-norm"]  # as coco-caption calls it
    command = [java, "-Xmx2G", "-Dfile.encoding=UTF-8", *jar]
    with _running(command, folder, METEOR_TIME[0] + METEOR_TIME[1] * len(hypotheses)) as program:

        def ask(parts: Sequence[str]) -> str:
            program.stdin.write(" ||| ".join(parts) + "\n")
            program.stdin.flush()
            return program.stdout.readline()

        statistics = []
        for refs, words in zip(references, hypotheses, strict=True):
            answer = ask(["SCORE", *(_line(caption) for caption in (*refs, words))])
            if len([float(number) for number in answer.split()]) != 23:
                raise ValueError(f"METEOR answered {answer[:50]!r}")
            statistics.append(answer.strip())
        ask(["EVAL", *statistics])  # the first image's score; those of the others follow, then the score of all
        return [float(program.stdout.readline()) for _ in statistics][-1]


def spice(references: Sequence[Sequence[Words]], hypotheses: Sequence[Words]) -> float:
    """SPICE (Anderson et al. 2016), the mean F1 over the images, 0..1 in steps of 0.001.

    The program runs without its cache and without its JSON output: these are what breaks on Java 15 and newer. So the
    score is the one it prints, of three digits.

    Args:
        references: words of one or more captions of each image.
        hypotheses: words of a caption of each image.

    Raises:
        Unavailable: no pycocoevalcap, no Stanford models, no Java that starts, or no score from it.
    """
    folder, java = _coco_folder() / "spice", _java()
    if not all((folder / "lib" / name).is_file() for name in MODELS):
        fetch = "python -m pycocoevalcap.spice.get_stanford_models"
        raise Unavailable(f"its Stanford models are not in {folder / 'lib'}: {fetch} downloads them (500 MB)")
    rows = [
        {"image_id": number, "test": _line(words), "refs": [_line(caption) for caption in refs]}
        for number, (refs, words) in enumerate(zip(references, hypotheses, strict=True))
    ]
    with tempfile.TemporaryDirectory() as temporary:
        file = Path(temporary, "captions.json")
        file.write_text(json.dumps(rows), encoding="utf-8")
        command = [java, "-Xmx8G", "-Dfile.encoding=UTF-8", "-Duser.language=en", "-jar", "spice-1.0.jar", str(file)]
        said = _output(command, folder, SPICE_TIME[0] + SPICE_TIME[1] * len(hypotheses))
    found = re.search(r"All tuples\s+f-score:\s+(\d\.\d+)", said)
    if not found:
        raise Unavailable(f"{java} printed no score: try another Java")
    return float(found[1])


def clip_score(paths: Sequence[str | os.PathLike], captions: Sequence[str], model: str) -> float:
    """CLIPScore without references (Hessel et al. 2021, equation 1), in general 0..1: 2.5 · the mean cosine.

    The cosine of CLIP's embeddings of an image and of "A photo depicts " before its caption is computed by
    torchmetrics, which takes a negative mean as 0.

    Args:
        paths: files.
        captions: the caption of each.
        model: CLIP's name on the Hugging Face hub, such as openai/clip-vit-base-patch32 (the paper's), or its folder.

    Raises:
        Unavailable: no transformers, no such model within reach, or an image that cannot be read.
    """
    for package in ("transformers", "torchmetrics"):
        if importlib.util.find_spec(package) is None:
            raise Unavailable(f"{package} is not installed: pip install {package}")
    import torch
    from torchmetrics.multimodal.clip_score import CLIPScore
    from torchvision.transforms.functional import pil_to_tensor
    from tqdm import tqdm

    from captioner.data.images import open_image
    from captioner.devices import best_device

    device = best_device()
    try:
        metric = CLIPScore(lambda: _clip(model)).to(device)
        parts = range(0, len(paths), BATCH)
        for start in tqdm(parts, desc="CLIPScore", disable=None, unit_scale=BATCH, unit="image"):
            here = slice(start, start + BATCH)
            images = [pil_to_tensor(open_image(path)).to(device) for path in paths[here]]
            with torch.inference_mode():
                metric.update(images, [PROMPT + caption for caption in captions[here]])
    except UserError as error:
        raise Unavailable(str(error)) from error
    except Exception as error:  # whatever a hub, a damaged file or a full accelerator can raise
        raise Unavailable(f"{model}: {_first_line(str(error))}: name a CLIP that is here or can be reached") from error
    return 2.5 * float(metric.compute()) / 100


def _clip(model: str) -> tuple[Any, Any]:
    """CLIP and its processor as torchmetrics wants them."""
    import huggingface_hub
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    huggingface_hub.utils.logging.set_verbosity_error()
    open_model: Any = transformers.CLIPModel.from_pretrained
    clip, info = open_model(model, output_loading_info=True)
    if info["missing_keys"]:
        raise ValueError(f"{len(info['missing_keys'])} weights of a CLIP are missing in it")
    processor = transformers.CLIPProcessor.from_pretrained(model)
    longest = clip.config.text_config.max_position_embeddings

    def process(text: list[str] | None = None, **more: Any) -> Any:
        if text is None:
            return processor(**more)
        return processor(text=text, truncation=True, max_length=longest, **more)  # torchmetrics cuts the END off, too

    def tensor(method: Any) -> Any:
        """Since transformers 5 the embeddings come in an object, which torchmetrics 1.9 does not expect."""

        def embed(*inputs: Any) -> Any:
            found = method(*inputs)
            return found if isinstance(found, torch.Tensor) else found.pooler_output

        return embed

    clip.get_image_features, clip.get_text_features = tensor(clip.get_image_features), tensor(clip.get_text_features)
    return clip.eval(), process


def _line(words: Words) -> str:
    """The words in one line without METEOR's separator."""
    return " ".join(" ".join(words).replace("|||", " ").split())


def _coco_folder() -> Path:
    """The folder of pycocoevalcap, which is not imported."""
    found = importlib.util.find_spec("pycocoevalcap")
    if found is None or not found.submodule_search_locations:
        raise Unavailable("pycocoevalcap is not installed: pip install pycocoevalcap")
    return Path(found.submodule_search_locations[0])


def _java() -> str:
    """The java on the PATH, which has been seen to start."""
    java = shutil.which("java")
    if java is None:
        raise Unavailable("there is no java on the PATH: install a Java runtime")
    _output([java, "-version"], Path(), START)
    return java


def _output(command: list[str], folder: Path, seconds: float) -> str:
    """What a program without input prints, once it has ended well."""
    with _running(command, folder, seconds) as program:
        program.stdin.close()
        said = program.stdout.read(LONGEST)
        if len(said) == LONGEST:
            raise ValueError("it does not stop talking")
        if program.wait():
            raise ValueError(f"exit code {program.returncode}")
    return said


@contextlib.contextmanager
def _running(command: list[str], folder: Path, seconds: float) -> Iterator[Any]:
    """A program with text pipes, gone with its whole process group when the block ends or the time is up.

    Raises:
        Unavailable: it cannot be started, or for the OSError or ValueError of a block that could not talk to it.
    """
    with tempfile.TemporaryFile() as complaints:
        try:
            program = subprocess.Popen(
                command,
                cwd=folder,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=complaints,
                encoding="utf-8",
                errors="replace",
                start_new_session=True,
            )
        except OSError as error:
            raise Unavailable(f"{command[0]} cannot be started: {error.strerror}: try another Java") from error
        late = threading.Event()

        def stop() -> None:
            late.set()
            _kill(program)

        watchdog = threading.Timer(seconds, stop)
        watchdog.daemon = True
        watchdog.start()
        try:
            yield program
        except (OSError, ValueError) as error:
            if late.is_set():
                raise Unavailable(f"{command[0]} took longer than {seconds:.0f} s: try another Java") from error
            complaints.seek(0)
            said = _first_line(complaints.read().decode(errors="replace"))
            why = f"{said} ({_first_line(str(error))})" if said else _first_line(str(error))
            raise Unavailable(f"{command[0]} failed: {why}: try another Java") from error
        finally:
            watchdog.cancel()
            _kill(program)
            program.wait()
            for pipe in (program.stdin, program.stdout):
                with contextlib.suppress(OSError):  # what it has not read any more
                    pipe and pipe.close()


def _kill(program: subprocess.Popen[str]) -> None:
    """End a program that has not been waited for, and all it has started."""
    if program.returncode is None:
        with contextlib.suppress(OSError):
            os.killpg(program.pid, signal.SIGKILL) if hasattr(os, "killpg") else program.kill()


def _first_line(text: str) -> str:
    """The first line that says something, not too long."""
    return next((line.strip()[:200] for line in text.splitlines() if line.strip()), "")
