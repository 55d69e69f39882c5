"""The real command line, ``main([...])``: what it prints, writes and refuses."""

import csv
import io
import json
import os
import re
import runpy
import shutil
import subprocess
import sys

import pytest
from helpers import ROOT, SHIPPED, is_one_line, make_captioner
from pycocotools.coco import COCO

from captioner import __version__
from captioner.__main__ import COMMANDS
from captioner.data import clips
from captioner.data.vocabulary import Vocabulary
from captioner.models.captioner import Captioner


@pytest.fixture
def photos(tmp_path, tiny):
    """Five images in a folder with a subfolder."""
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    for path in sorted(tiny.images("val").iterdir())[:5]:
        shutil.copy(path, folder if path.name < "015.png" else folder / "more")
    return folder


@pytest.fixture
def predict(cli, run):
    def call(*arguments):
        return cli("predict", *arguments, "--checkpoint", run / "best.ckpt", "--device", "cpu")

    return call


@pytest.fixture(scope="module")
def captions(run, tiny):
    """The model's caption of each validation image, by name."""
    paths = sorted(tiny.images("val").iterdir())
    return dict(zip([p.name for p in paths], Captioner.load(run / "best.ckpt").caption(paths), strict=True))


# ---- all commands


def test_overview(cli):
    for arguments in ([], ["--help"], ["-h"], ["help"]):
        code, out, err = cli(*arguments)
        assert (code, err) == (0, "")
        assert all(f"  {name}" in out for name in COMMANDS)
    assert cli("--version") == (0, f"captioner {__version__}\n", "")


def test_every_command_has_a_file_and_every_file_a_command():
    modules = {name.replace(" ", "_") for name in COMMANDS}
    assert {path.stem for path in (ROOT / "captioner" / "cli").glob("*.py")} == {
        *modules,
        "__init__",
        "options",
        "parser",
    }


def test_interrupted(cli, monkeypatch, photos, run):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(Captioner, "search", interrupt)
    code, _, err = cli("predict", photos, "--checkpoint", run / "best.ckpt", "--device", "cpu")
    assert code == 130
    assert is_one_line(err, "interrupted")


# ---- predict


def test_text(predict, photos, captions):
    code, out, err = predict(photos)
    names = ["012.png", "013.png", "014.png", "more/015.png", "more/016.png"]
    assert (code, err) == (0, "")
    assert out.splitlines() == [f"{photos / name}\t{captions[name.split('/')[-1]]}" for name in names]


@pytest.mark.parametrize("batch_size", [1, 2, 32])
def test_jsonl(predict, photos, captions, batch_size):
    code, out, _ = predict(photos, "--format", "jsonl", "--batch_size", batch_size)
    rows = [json.loads(line) for line in out.splitlines()]
    assert code == 0
    assert [row["caption"] for row in rows] == [captions[row["image"].split("/")[-1]] for row in rows]
    assert len(rows) == 5
    for row in rows:
        assert set(row) == {"image", "caption", "log_prob", "score", "perplexity", "ended", "probabilities"}
        assert row["log_prob"] < 0
        assert row["perplexity"] > 1
        assert len(row["probabilities"]) == len(row["caption"].split()) + row["ended"]


@pytest.mark.parametrize("option", [["--n-best", "3"], ["--n_best=3"]])
def test_n_best(predict, photos, option):
    code, out, _ = predict(photos / "012.png", "--format", "jsonl", *option)
    row = json.loads(out)
    assert code == 0
    assert len(row["n_best"]) == 3
    assert row["n_best"][0] == {name: value for name, value in row.items() if name not in ("image", "n_best")}
    scores = [one["score"] for one in row["n_best"]]
    assert scores == sorted(scores, reverse=True)
    code, out, _ = predict(photos / "012.png", *option)
    lines = [line.split("\t") for line in out.splitlines()]
    assert [line[1] for line in lines] == [one["caption"] for one in row["n_best"]]
    assert [float(line[2]) for line in lines] == pytest.approx(scores, abs=1e-3)  # what they are ranked by
    code, out, _ = predict(photos / "012.png", "--format", "csv", *option)
    head, *rows = csv.reader(io.StringIO(out))
    assert head == ["image", "caption", "score"]
    assert [row[1:] for row in rows] == [line[1:] for line in lines]


def test_output(predict, photos, tmp_path):
    _, expected, _ = predict(photos)
    code, out, err = predict(photos, "--output", tmp_path / "new" / "captions.txt")
    assert (code, out, err) == (0, "", "")
    assert (tmp_path / "new" / "captions.txt").read_text() == expected
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["captions.txt"]
    (tmp_path / "file").write_text("mine")
    code, _, err = predict(photos, "--output", tmp_path / "file" / "captions.txt")
    assert code == 2
    assert is_one_line(err, "cannot be written", str(tmp_path / "file"))


def test_standard_input_and_patterns(predict, photos, monkeypatch):
    _, expected, _ = predict(photos / "012.png", photos / "013.png")
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{photos / '012.png'}\n\n{photos / '013.png'}\n"))
    assert predict("-") == (0, expected, "")
    assert predict(f"{photos}/01[23].png") == (0, expected, "")
    assert predict(photos / "012.png", photos / "013.png", photos / "012.png") == (0, expected, "")  # each once


def test_unreadable_images_are_named_and_the_others_captioned(predict, photos):
    _, expected, _ = predict(photos)
    (photos / "0-bad.png").write_bytes(b"no image")
    code, out, err = predict(photos, photos / "missing.png", "--batch_size", 2)
    assert (code, out) == (1, expected)
    lines = err.splitlines()
    assert len(lines) == 3
    assert str(photos / "0-bad.png") in lines[0]
    assert str(photos / "missing.png") in lines[1]
    assert "2 of 7 images could not be read" in lines[2]


def test_search_options_reach_the_search(predict, photos, run):
    model = Captioner.load(run / "best.ckpt")
    code, out, _ = predict(photos / "012.png", "--beam", 3, "--length_penalty", 2, "--max_length", 2)
    assert code == 0
    text = model.caption(photos / "012.png", beam=3, length_penalty=2.0, max_length=2)
    assert out == f"{photos / '012.png'}\t{text}\n"
    assert len(text.split()) <= 2


@pytest.mark.parametrize(
    ("options", "holds"),
    [
        (["--prefix", "there is"], lambda text: text.startswith("there is")),
        (["--must", "small"], lambda text: "small" in text.split()),
        (["--must-not", "a"], lambda text: "a" not in text.split()),
        (["--min-length", "6"], lambda text: len(text.split()) >= 6),
        (["--no-repeat-ngram", "1"], lambda text: len(set(text.split())) == len(text.split())),
        (["--groups", "5", "--diversity", "2"], bool),
        (["--sample", "--temperature", "0.5", "--top-k", "5", "--top-p", "0.9", "--min-p", "0.01"], bool),
        (["--length-norm", "average", "--no-bad-ending", "--no-repeat-word"], bool),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_every_search_option_works_on_the_command_line(predict, photos, options, holds):
    code, out, err = predict(photos, *options)
    texts = [line.split("\t")[1] for line in out.splitlines()]
    assert (code, err, len(texts)) == (0, "", 5)
    assert all(map(holds, texts)), texts


def test_several_checkpoints_are_an_ensemble(cli, predict, photos, run):
    _, alone, _ = predict(photos)
    files = ["--checkpoint", run / "best.ckpt", "--checkpoint", run / "best.ckpt"]
    assert cli("predict", photos, *files, "--device", "cpu") == (0, alone, "")


def test_script(photos, run, monkeypatch, capsys):
    """``python predict.py`` as people call it."""
    model = ("--checkpoint", str(run / "best.ckpt"), "--device", "cpu")
    monkeypatch.setattr(sys, "argv", ["predict.py", str(photos / "012.png"), *model])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(ROOT / "predict.py"), run_name="__main__")
    assert not stopped.value.code
    assert capsys.readouterr().out.startswith(f"{photos / '012.png'}\t")


@pytest.mark.slow
def test_script_without_lightning(photos, run):
    """Lightning is never imported (tests/test_imports.py finds that out without running the script)."""
    code = (
        "import sys, runpy\nsys.argv[0] = 'predict.py'\n"
        "try: runpy.run_path('predict.py', run_name='__main__')\n"
        "except SystemExit as stopped: code = stopped.code or 0\n"
        "print(code, sorted({'pytorch_lightning', 'tensorboard', 'nltk', 'torchmetrics'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", code, str(photos / "012.png"), "--checkpoint", str(run / "captioner.safetensors")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.stderr == ""
    assert done.stdout.splitlines()[-1] == "0 []"
    assert done.stdout.startswith(f"{photos / '012.png'}\t")


@pytest.mark.parametrize("command", ["--help", pytest.param("predict", marks=pytest.mark.slow)])
def test_a_pipe_that_closes(photos, run, command):
    """``captioner predict … | head -1``"""
    options = [str(photos), "--checkpoint", str(run / "best.ckpt")] if command == "predict" else []
    words = [sys.executable, "-m", "captioner", command, *options]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT) as process:
        process.stdout.close()
        err = process.stderr.read().decode()
    assert "Traceback" not in err
    assert process.returncode == 141 or (command, process.returncode) == ("predict", 0)


def test_the_default_checkpoint_captions_photographs(cli):
    assert SHIPPED.exists(), f"{SHIPPED} is missing: the model that ships with captioner belongs there"
    code, out, err = cli("predict", ROOT / "data" / "photos")
    lines = [line.split("\t") for line in out.splitlines()]
    assert (code, err) == (0, "")
    assert len({line[1] for line in lines}) == len(lines) >= 4
    assert all(3 <= len(line[1].split()) <= 20 for line in lines)
    assert all(re.fullmatch(r"unsure \(\d+%\)", unsure) for _, _, *rest in lines for unsure in rest)
    (photographer,) = [line[1] for line in lines if line[0].endswith("cameraman.jpg")]
    assert {"man", "tripod"} <= set(photographer.split()), photographer


# ---- evaluate and score


@pytest.fixture
def evaluate(cli, run):
    def call(coco, *arguments):
        files = ("--annotations", coco.annotations("val"), "--images", coco.images("val"))
        return cli("evaluate", *files, "--checkpoint", run / "best.ckpt", "--device", "cpu", *arguments)

    return call


def test_evaluate(evaluate, tiny, tmp_path, captions):
    code, out, _ = evaluate(tiny, "--output", tmp_path / "results.json", "--json", tmp_path / "metrics.json")
    assert code == 0
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    keys = {"BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "ROUGE-L", "CIDEr", "distinct", "images", "signature"}
    assert keys <= set(metrics)
    assert metrics["images"] == 6
    assert f"{metrics['CIDEr']:.2f}" in out
    assert metrics["signature"] in out
    coco = COCO(str(tiny.annotations("val")))
    results = coco.loadRes(str(tmp_path / "results.json"))
    assert sorted(results.getImgIds()) == sorted(coco.getImgIds())
    names = {image["id"]: image["file_name"] for image in coco.dataset["images"]}
    rows = json.loads((tmp_path / "results.json").read_text())
    assert {names[row["image_id"]]: row["caption"] for row in rows} == captions


def test_score_of_the_results_of_evaluate(evaluate, cli, tiny, tmp_path):
    evaluate(tiny, "--output", tmp_path / "results.json", "--json", tmp_path / "metrics.json")
    code, out, _ = cli(
        *("score", "--annotations", tiny.annotations("val"), "--results", tmp_path / "results.json"),
        *("--json", tmp_path / "again.json"),
    )
    assert code == 0
    first, again = (json.loads((tmp_path / name).read_text()) for name in ("metrics.json", "again.json"))
    assert first == again
    assert first["signature"] in out


def test_each_image_is_decoded_once(evaluate, tiny, monkeypatch):
    opened, open_image = [], clips.open_image
    monkeypatch.setattr(clips, "open_image", lambda path, **more: opened.append(path) or open_image(path, **more))
    assert evaluate(tiny, "--workers", 0)[0] == 0
    assert len(opened) == len(set(opened)) == 6


def test_evaluate_with_a_bad_image(evaluate, fresh, tmp_path):
    (fresh.images("val") / "013.png").write_bytes(b"no image")
    (fresh.images("val") / "014.png").unlink()
    code, out, err = evaluate(fresh, "--output", tmp_path / "results.json")
    assert (code, out) == (2, "")
    assert "014.png" in err.splitlines()[-1]
    assert "--skip_bad_images" in err.splitlines()[-1]
    assert "--data." not in err  # an option that evaluate does not have
    assert not (tmp_path / "results.json").exists()
    code, out, err = evaluate(fresh, "--output", tmp_path / "results.json", "--skip_bad_images")
    assert code == 0
    assert "2 images skipped" in err
    assert len(json.loads((tmp_path / "results.json").read_text())) == 4


# ---- shapes


def test_shapes(cli, tmp_path):
    code, out, err = cli("shapes", "--output", tmp_path / "set", "--count", 3, "--val-count", 2, "--size", 32)
    assert (code, err) == (0, "")
    assert f"--data.train {tmp_path}/set/captions_train.json --data.train_images {tmp_path}/set/train" in out
    assert len(list((tmp_path / "set" / "train").iterdir())) == 3


def test_an_output_that_is_not_utf_8_gets_escapes(tmp_path, images):
    """Of what it cannot encode; no traceback."""
    model = make_captioner()
    words = ["एक", "कुत्ता", *model.vocabulary.words[6:]]
    hindi = Captioner(model.config, Vocabulary(words), model.encoder, model.encoder_digest)
    hindi.decoder.load_state_dict(model.decoder.state_dict())
    hindi.save(tmp_path / "model.safetensors")
    command = [
        sys.executable,
        "-m",
        "captioner",
        "predict",
        str(images[0]),
        "--checkpoint",
        str(tmp_path / "model.safetensors"),
    ]
    options = {"capture_output": True, "cwd": ROOT, "env": {**os.environ, "PYTHONIOENCODING": "ascii"}}
    found = subprocess.run([*command, "--prefix", "कुत्ता"], **options)
    assert (found.returncode, found.stderr) == (0, b"")
    assert "कुत्ता".encode("ascii", "backslashreplace") in found.stdout
