"""METEOR, SPICE and CLIPScore: correct if available, else one line; no process is left running."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest
from helpers import is_one_line
from PIL import Image
from tiny_clip import write_clip

from captioner.errors import UserError
from captioner.metrics import external

REFERENCES = [[["a", "dog", "runs"], ["the", "dog", "|||", "is", "running"]], [["a", "café"]], [["two", "men", "talk"]]]
HYPOTHESES = [["a", "dog", "is", "running"], ["a", "|||", "café"], []]
no_coco = importlib.util.find_spec("pycocoevalcap") is None


@pytest.fixture
def java(tmp_path, monkeypatch):
    """``java(script)`` puts a shell script on the PATH as java; every process it starts writes its id to `pids`."""
    folder = tmp_path / "bin"
    folder.mkdir()
    jars = tmp_path / "pycocoevalcap"
    (jars / "meteor").mkdir(parents=True)
    (jars / "spice" / "lib").mkdir(parents=True)
    monkeypatch.setattr(external, "_coco_folder", lambda: jars)
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)

    def put(script: str) -> None:
        text = script if script.startswith("#!") or not script else f"#!/bin/sh\necho $$ >> {tmp_path}/pids\n{script}"
        (folder / "java").write_text(text)
        (folder / "java").chmod(0o755)

    return put


def left_running(tmp_path) -> list[str]:
    """The processes of the fake java that are alive half a second later."""
    file = tmp_path / "pids"
    pids = file.read_text().split() if file.exists() else []
    for _ in range(50):
        states = [
            subprocess.run(["ps", "-o", "stat=", "-p", pid], capture_output=True, text=True).stdout for pid in pids
        ]
        alive = [pid for pid, state in zip(pids, states, strict=True) if state.strip() and not state.startswith("Z")]
        if not alive:
            return []
        time.sleep(0.01)
    return alive


STARTS = 'case "$*" in *-version*) exit 0;; esac\n'
BAD = {
    "exits with 1": ("echo 'no JVM here' >&2; exit 1", ["no JVM here", "exit code 1"]),
    "no program": ("", []),
    "prints garbage": ("echo garbage; exit 3", ["exit code 3"]),
    "hangs at once": ("sleep 30 & echo $! >> PIDS; wait", ["took longer than"]),
    "hangs without its output": ("exec >&- 2>&-; sleep 30", ["took longer than"]),
    "pours garbage": ("exec yes garbage", ["endless output"]),
    "answers garbage": (STARTS + "while read line; do echo garbage; done", []),
    "pours garbage later": (STARTS + "exec yes garbage", []),
    "answers few numbers": (STARTS + "while read line; do echo 0.5; done", []),
    "dies": (STARTS + "read line; echo 'out of memory' >&2; exit 137", ["out of memory"]),
    "dies at once": (STARTS + "exec <&-; exit 1", []),
    "hangs later": (STARTS + "sleep 30 & echo $! >> PIDS; wait", ["took longer than"]),
}


@pytest.mark.parametrize("kind", BAD)
@pytest.mark.parametrize("score", [external.meteor, external.spice])
def test_a_bad_java_is_one_line_and_nothing_is_left(java, tmp_path, monkeypatch, kind, score):
    script, says = BAD[kind]
    java(script.replace("PIDS", str(tmp_path / "pids")))
    for name in external.MODELS:
        (tmp_path / "pycocoevalcap" / "spice" / "lib" / name).touch()
    if "hangs" in kind:
        for name, seconds in (("START", 0.2), ("METEOR_TIME", (0.2, 0)), ("SPICE_TIME", (0.2, 0))):
            monkeypatch.setattr(external, name, seconds)
    if kind == "hangs later":
        monkeypatch.setattr(external, "START", 30.0)
    start = time.monotonic()
    with pytest.raises(UserError) as caught:
        score(REFERENCES, HYPOTHESES)
    assert time.monotonic() - start < 10
    assert is_one_line(str(caught.value), str(tmp_path / "bin" / "java"), "Java", *says)
    assert not left_running(tmp_path)


def test_without_java_or_its_jars(java, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    with pytest.raises(UserError, match="no java on the PATH: install"):
        external.meteor(REFERENCES, HYPOTHESES)
    java("exit 0")
    with pytest.raises(
        UserError, match=r"models are not in .*lib: python -m pycocoevalcap\.spice\.get_stanford_models"
    ):
        external.spice(REFERENCES, HYPOTHESES)
    monkeypatch.undo()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for score in (external.meteor, external.spice):
        with pytest.raises(UserError, match="pip install pycocoevalcap"):
            score(REFERENCES, HYPOTHESES)


METEOR = """#!{python}
import sys
if "-version" not in sys.argv:
    with open("{log}", "w", encoding="utf-8") as log:
        print(*sys.argv[1:], file=log)
        for line in sys.stdin.buffer:
            line = line.decode("utf-8")
            log.write(line)
            log.flush()
            parts = line.rstrip("\\n").split(" ||| ")
            if parts[0] == "SCORE":
                print(*[float(len(parts))] * 23, flush=True)
            else:
                print("\\n".join(["0.5"] * (len(parts) - 1) + ["0.25"]), flush=True)
"""


def test_input_of_meteor(java, tmp_path):
    java(METEOR.format(python=sys.executable, log=tmp_path / "log"))
    assert external.meteor(REFERENCES, HYPOTHESES) == 0.25
    lines = (tmp_path / "log").read_text(encoding="utf-8").splitlines()
    assert lines[0].endswith("-jar meteor-1.5.jar - - -stdio -l en -norm")
    assert lines[1:4] == [
        "SCORE ||| a dog runs ||| the dog is running ||| a dog is running",
        "SCORE ||| a café ||| a café",
        "SCORE ||| two men talk ||| ",
    ]
    assert lines[4] == "EVAL ||| " + " ||| ".join(" ".join([f"{n}.0"] * 23) for n in (4, 3, 3))


def test_input_of_spice(java, tmp_path):
    for name in external.MODELS:
        (tmp_path / "pycocoevalcap" / "spice" / "lib" / name).touch()
    report = "***  SPICE Evaluation  ***\\n\\nAll tuples\\n  f-score:\\t0.185 (SPICE metric)\\n  precision:\\t0.2\\n"
    java(f"{STARTS}for last; do :; done; cp \"$last\" {tmp_path}/asked; printf '{report}'; pwd > {tmp_path}/folder")
    assert external.spice(REFERENCES, HYPOTHESES) == 0.185
    assert json.loads((tmp_path / "asked").read_text()) == [
        {"image_id": 0, "test": "a dog is running", "refs": ["a dog runs", "the dog is running"]},
        {"image_id": 1, "test": "a café", "refs": ["a café"]},
        {"image_id": 2, "test": "", "refs": ["two men talk"]},
    ]
    assert Path((tmp_path / "folder").read_text().strip()) == tmp_path / "pycocoevalcap" / "spice"
    java(f"{STARTS}printf '{report}'; exit 1")
    with pytest.raises(UserError, match="exit code 1"):
        external.spice(REFERENCES, HYPOTHESES)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("java") is None, reason="there is no Java")
@pytest.mark.skipif(no_coco, reason="pycocoevalcap is not installed")
def test_meteor_equals_coco_caption():
    from pycocoevalcap.meteor.meteor import Meteor

    words = ["a", "the", "dog", "man", "runs", "running", "rides", "on", "grass", "street", "red", "two", "men", "café"]
    hypotheses = [[words[(3 * i + j * j) % len(words)] for j in range(i % 9)] for i in range(60)]
    references = [
        [[words[(3 * i + j * j + (j + k) % 3) % len(words)] for j in range(4 + (i + k) % 6)] for k in range(1 + i % 5)]
        for i in range(60)
    ]
    oracle = Meteor()
    try:
        expected, _ = oracle.compute_score(
            {i: [" ".join(caption) for caption in refs] for i, refs in enumerate(references)},
            {i: [" ".join(caption)] for i, caption in enumerate(hypotheses)},
        )
    finally:
        oracle.meteor_p.kill()
    assert 0.05 < expected < 0.95
    assert external.meteor(references, hypotheses) == expected


# ---- CLIPScore


@pytest.mark.slow
def test_clip_score(tmp_path, capfd, monkeypatch):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed (the extra clip)")
    import torch
    from torchvision.transforms.functional import pil_to_tensor

    write_clip(tmp_path / "clip")
    images = [tmp_path / f"{n}.png" for n in range(5)]
    for n, path in enumerate(images):
        Image.effect_noise((40 + 10 * n, 60), 80).convert("L" if n == 1 else "RGB").save(path)
    captions = ["a dog", "two dogs run", "", "a very long caption " * 9, "b"]
    capfd.readouterr()
    monkeypatch.setattr(external, "BATCH", 2)
    monkeypatch.setattr("captioner.devices.best_device", lambda: "cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # a caption that was cut
        score = external.clip_score(images, captions, str(tmp_path / "clip"))
    assert capfd.readouterr() == ("", "")

    model = transformers.CLIPModel.from_pretrained(tmp_path / "clip")
    processor = transformers.CLIPProcessor.from_pretrained(tmp_path / "clip")
    cosines = []
    for path, caption in zip(images, captions, strict=True):
        inputs = processor(
            text=[f"A photo depicts {caption}"],
            images=[pil_to_tensor(Image.open(path).convert("RGB"))],
            return_tensors="pt",
            truncation=True,
            max_length=24,
        )
        with torch.inference_mode():
            found = model(**inputs)
        cosines.append(float((found.image_embeds * found.text_embeds).sum()))
    assert min(cosines) > 0
    assert len(set(cosines)) == 5
    assert score == pytest.approx(2.5 * sum(cosines) / 5, rel=1e-5)

    (tmp_path / "4.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"4\.png"):
        external.clip_score(images, captions, str(tmp_path / "clip"))
    config = json.loads((tmp_path / "clip" / "config.json").read_text())
    config["text_config"]["num_hidden_layers"] = 2  # the weights of one are missing
    (tmp_path / "clip" / "config.json").write_text(json.dumps(config))
    (tmp_path / "bert").mkdir()
    for model in (tmp_path / "clip", tmp_path / "bert", tmp_path / "nowhere"):
        with pytest.raises(UserError) as caught:
            external.clip_score(images[:1], captions[:1], str(model))
        assert is_one_line(str(caught.value), str(model), "name a CLIP")


def test_without_transformers(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install transformers"):
        external.clip_score([], [], "openai/clip-vit-base-patch32")
