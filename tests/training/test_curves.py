"""The logs of runs, read and drawn."""

import json
import sys

import pytest
from helpers import is_one_line

from captioner.errors import UserError
from captioner.training.curves import literal, plot_curves, read_logs, run_labels


def write(run, part, *rows, columns="step,train_loss,val_cider"):
    folder = run / "logs" / f"part_{part}"
    folder.mkdir(parents=True)
    (folder / "metrics.csv").write_text("\n".join([columns, *rows]) + "\n")


def test_a_real_run_has_every_curve(run, cli, tmp_path):
    pytest.importorskip("matplotlib")
    curve = read_logs(run)
    assert {"train_loss", "val_loss", "val_cider", "val_bleu4", "lr", "grad_norm", "captions_per_s"} <= set(curve)
    assert all(steps == sorted(steps) for steps in ([s for s, _ in points] for points in curve.values()))
    for ending, begins in ((".png", b"\x89PNG"), (".svg", b"<?xml"), (".pdf", b"%PDF")):
        target = tmp_path / "deep" / f"curves{ending}"
        code, out, err = cli("plot", run, "--output", target, "--json", tmp_path / "numbers.json")
        assert (code, out, err) == (0, f"{target}\n", "")
        assert target.read_bytes().startswith(begins)
        assert [path.name for path in target.parent.iterdir() if path.name.startswith(".")] == []
    (one,) = json.loads((tmp_path / "numbers.json").read_text()).values()
    assert one == json.loads(json.dumps(curve))


def test_a_resumed_run_is_one_curve(tmp_path):
    """Steps after the last checkpoint were trained twice; the values of the second time count."""
    write(tmp_path, 0, "1,5.0,", "2,4.0,", "3,9.9,", "3,,70.0")
    write(tmp_path, 1, "3,3.0,", "4,2.0,", "4,,80.0")
    write(tmp_path, 10, "5,1.0,")
    assert read_logs(tmp_path)["train_loss"] == [[1, 5], [2, 4], [3, 3], [4, 2], [5, 1]]
    assert read_logs(tmp_path)["val_cider"] == [[4, 80]]


def test_an_incomplete_line_is_left_out(tmp_path):
    write(tmp_path, 0, "1,5.0,", "2,4.0,", "3,", "nonsense")
    assert read_logs(tmp_path) == {"train_loss": [[1, 5], [2, 4]]}


def test_two_runs_of_one_name_are_told_apart(tmp_path):
    a, b, c = tmp_path / "a" / "run", tmp_path / "b" / "run", tmp_path / "other"
    assert run_labels([a, b, c]) == [str(a), str(b), "other"]
    with pytest.raises(UserError, match="is named twice"):
        run_labels([a, a])


def test_log_axes_have_formulas_and_names_of_runs_have_none(tmp_path):
    pytest.importorskip("matplotlib")
    from matplotlib import pyplot
    from matplotlib.cbook import is_math_text

    write(tmp_path / "a$b$c", 0, "1,0.5", "2,50.0", columns="step,grad_norm")
    plot_curves({"a$b$c": read_logs(tmp_path / "a$b$c")}, tmp_path / "curves.png")
    axis = pyplot.gcf().axes[0]
    (label,) = [tick.get_text() for tick in axis.yaxis.get_majorticklabels() if "10^{1}" in tick.get_text()]
    assert is_math_text(label)
    assert axis.yaxis.get_majorticklabels()[0].get_parse_math()  # else the formula stands there in full
    assert not is_math_text(literal("a$b$c"))


def test_what_cannot_be_drawn_is_one_line(run, cli, tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    code, _, err = cli("plot", tmp_path / "empty")
    assert code == 2
    assert is_one_line(err, "empty", "metrics.csv")
    write(tmp_path / "young", 0)
    code, _, err = cli("plot", run, tmp_path / "young")
    assert code == 2
    assert is_one_line(err, "young", "nothing yet")
    code, _, err = cli("plot", run, "--output", tmp_path / "curves.txt")
    assert code == 2
    assert is_one_line(err, "curves.txt", ".png, .svg, .pdf")
    assert not list(tmp_path.glob("*curves*"))
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    code, _, err = cli("plot", run, "--output", tmp_path / "curves.png")
    assert code == 2
    assert is_one_line(err, "matplotlib", "pip install -e '.[plot]'")
