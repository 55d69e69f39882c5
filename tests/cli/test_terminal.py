"""What train, pretrain, evaluate and predict show on terminals of 100 and 80 columns: whole lines, one bar a stage."""

import re

import pytest
from helpers import arguments
from terminal import terminal

from captioner.__main__ import main

pytest.importorskip("termios", reason="a pseudo-terminal")
BAR = r"[a-z][\w ,]+ \|[ ▏▎▍▌▋▊▉█]+\| \d+/\d+( images)?(, (loss|CIDEr) \d+\.\d\d)*"
BAR += r"(, (over )?\d\d:\d\d left|, in \d\d:\d\d)?"
both = pytest.mark.parametrize("columns", [100, 80])


@pytest.fixture
def shown(tiny, run, tmp_path, monkeypatch):
    """``shown(columns, command, …)`` → its :class:`terminal.Screen`; paths are short, as a person would type them."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "set").symlink_to(tiny.folder)
    (tmp_path / "run.ckpt").symlink_to(run / "best.ckpt")

    def call(columns, *words):
        with terminal(columns, monkeypatch) as screen:
            assert main([str(word).replace(str(tiny.folder), "set") for word in words]) == 0
        lines = [line for line in screen.lines if " | tokenizer:" not in line]  # the signature stays on one
        assert max(map(len, lines)) <= columns
        assert max(map(len, screen.past), default=0) <= columns - 2
        torn = [line for line in lines + screen.past if "|" in line and not re.fullmatch(BAR, line)]
        assert torn == []
        return screen

    return call


@both
def test_train(shown, tiny, columns):
    screen = shown(columns, *arguments(tiny, "runs/mine", "--data.feature_cache", "features"))
    bars = [line for line in screen.lines if "|" in line]
    assert [bar.split(" |")[0] for bar in bars] == ["features of captions_train", "features of captions_val"]
    table = screen.lines.index(next(line for line in screen.lines if line.startswith("epoch ")))
    head, *rows = screen.lines[table : table + 3]
    assert head.split()[:4] == ["epoch", "loss", "val", "loss"]
    assert [row.split()[0] for row in rows] == ["1/2", "2/2"]
    number = r" +\d+\.\d\d"
    assert all(re.fullmatch(rf" *\d/2({number}){{8}}", row) for row in rows), rows
    assert {len(row) for row in (head, *rows)} == {len(head)}
    assert screen.lines[-3:] == [
        "Done: runs/mine/captioner.safetensors is the best model, for use",
        "try: captioner predict PHOTO.jpg --checkpoint runs/mine/captioner.safetensors",
        "beside it: best.ckpt, last.ckpt, samples.md and logs/",
    ]
    # The bars of the epochs are gone at the end.
    for epoch, stage in ((1, " "), (1, ", validation "), (2, " "), (2, ", validation ")):
        assert screen.states(f"epoch {epoch} of 2{stage}|")
    first, second = screen.states("epoch 1 of 2 |"), screen.states("epoch 2 of 2 |")
    assert re.search(r"/5(, loss \d+\.\d\d)?(, over \d\d:\d\d left)?$", first[-1])
    assert re.search(r"/5, loss \d+\.\d\d, CIDEr \d+\.\d\d, \d\d:\d\d left$", second[-1])
    assert not any(line.startswith("epoch 1 of") for line in screen.lines)


@both
def test_pretrain(shown, tmp_path, columns):
    (tmp_path / "text.txt").write_text("a dog runs\nthe cat sleeps\n" * 40)
    words = "--data.min_count 1 --data.tbptt_steps 4 --train.epochs 2 --trainer.accelerator cpu --train.samples 1"
    screen = shown(columns, "pretrain", "--data.text", "text.txt", "--output", "runs/lm", *words.split())
    heads = [line for line in screen.lines if line.startswith("epoch ")]
    assert len(heads) == 2
    assert heads[0].split("  ") == ["epoch", *heads[0].split("  ")[1:]]
    assert screen.lines[-1] == "beside it: best.ckpt, last.ckpt, samples.md and logs/"


@both
def test_evaluate(shown, columns):
    words = "--annotations set/captions_val.json --images set/val --checkpoint run.ckpt --batch_size 2 --device cpu"
    screen = shown(columns, "evaluate", *words.split(), "--report", "page.html", "--output", "out.json")
    states = screen.states("captions |")
    counts = [re.search(r"\| +(\d+)/6 images(.*)", state).groups() for state in states]
    assert [count for count, _ in counts] == ["0", "2", "4", "6"]  # by batches
    assert [bool(re.fullmatch(r", (\d\d:\d\d left|in \d\d:\d\d)", note)) for _, note in counts] == [
        False,
        False,
        True,
        True,
    ]
    assert screen.lines.count(states[-1]) == 1
    assert "out.json and page.html: captions of 6 images" in screen.lines


@both
@pytest.mark.parametrize(
    "output",
    [
        ["--output", "captions.csv", "--format", "csv"],
        ["--report", "page.html"],
        ["--output", "captions.txt", "--report", "page.html"],
        ["--output", "parts/"],
    ],
    ids=" ".join,
)
def test_predict_has_a_bar_and_says_what_it_wrote(shown, tmp_path, columns, output):
    screen = shown(columns, "predict", "set/val", "--checkpoint", "run.ckpt", "--batch_size", "2", *output)
    states = screen.states("captions |")
    assert [re.search(r"(\d+)/6 images", state)[1] for state in states] == ["0", "2", "4", "6"]
    written = [name for name in output if (tmp_path / name).exists()]
    assert screen.lines[-1] == f"{' and '.join(written)}: captions of 6 images"
    captions = [line for line in screen.lines if line.startswith("set/val/")]
    assert len(captions) == (6 if "--output" not in output else 0)


@both
def test_captions_on_the_terminal_are_above_the_bar(shown, columns):
    screen = shown(columns, "predict", "set/val", "--checkpoint", "run.ckpt", "--batch_size", "2")
    assert len(screen.lines) == 6
    assert all(line.startswith("set/val/") for line in screen.lines)
    assert len(screen.states("captions |")) > 3
    screen = shown(columns, "predict", "set/val", "--checkpoint", "run.ckpt")  # one batch
    assert len(screen.lines) == 6
    assert screen.states("captions |") == []


def test_an_error_is_below_the_bar(tiny, tmp_path, monkeypatch, run):
    """The bar stays where it was."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "list.csv").write_text("image,caption\na.png,a dog\nb.png,a cat\nc.png,a cow\n")
    for name in "ab":
        (tmp_path / f"{name}.png").write_bytes(next(tiny.images("val").iterdir()).read_bytes())
    (tmp_path / "c.png").write_bytes(b"no image")
    with terminal(80, monkeypatch) as screen:
        words = ["--annotations", "list.csv", "--images", ".", "--checkpoint", str(run / "best.ckpt")]
        assert main(["evaluate", *words, "--batch_size", "1"]) == 2
    assert re.search(r"^captions \|.*\| 2/3 images", screen.lines[0])
    assert screen.lines[1].startswith("captioner evaluate: error: c.png")


def test_no_control_characters_without_a_terminal(cli, tiny, run, tmp_path):
    code, out, err = cli(*arguments(tiny, tmp_path / "run"))
    assert code == 0
    assert re.search(r"^epoch 1/2: train_loss \d+\.\d\d  val_loss \d+\.\d\d  val_cider \d+\.\d\d  ", out, re.MULTILINE)
    assert (out + err).replace("\n", "").isprintable()
    assert "|" not in err
