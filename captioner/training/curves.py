"""The logs of training runs, read and drawn."""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from captioner.errors import UserError
from captioner.files import atomic_write, read_text

Curves = dict[str, list[list[float]]]  # by the name in the log: (step, value), in the order of the steps
PANELS = {  # title: what is drawn as a line and what as dots with a line; only what was logged is drawn
    "loss, nats a word": (["train_loss"], ["val_loss"]),
    "perplexity": ([], ["val_perplexity"]),
    "CIDEr-D": ([], ["val_cider"]),
    "BLEU-4": ([], ["val_bleu4"]),
    "reward": (["reward"], []),
    "learning rate": (["lr"], []),
    "gradient norm before clipping": (["grad_norm"], []),
}
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")  # of Okabe and Ito


def read_logs(folder: Path) -> Curves:
    """All that a run logged, from the metrics.csv of its parts; of a step in two parts, the values of the later one.

    Raises:
        UserError: it is not the folder of a run, or nothing is logged yet.
    """
    parts = {
        int(each.name[5:]): each / "metrics.csv" for each in folder.glob("logs/part_*") if each.name[5:].isdecimal()
    }
    files = [parts[number] for number in sorted(parts) if parts[number].is_file() and parts[number].stat().st_size]
    if not files:
        raise UserError(f"{folder} has no logs/part_*/metrics.csv: name the --output of a run that has begun to train")
    curves: Curves = {}
    for file in files:
        points = _read_csv(file)
        first = min((step for values in points.values() for step, _ in values), default=math.inf)
        curves = {name: [point for point in values if point[0] < first] for name, values in curves.items()}
        for name, values in points.items():
            curves.setdefault(name, []).extend(values)
    curves = {name: values for name, values in curves.items() if name not in ("step", "epoch")}
    if not curves:
        raise UserError(f"{folder} has logged nothing yet: a line comes every --trainer.log_every_n_steps steps")
    return curves


def _read_csv(file: Path) -> Curves:
    points: Curves = {}
    try:
        rows = list(csv.DictReader(read_text(file, "text").splitlines()))
    except csv.Error as error:
        raise UserError(f"{file}: is damaged ({error}); put back a copy") from None
    for row in rows:
        for name, text in row.items():
            try:
                point = [float(int(row["step"])), float(text)]
            except (KeyError, TypeError, ValueError, OverflowError):  # an empty field, or an incomplete line
                continue
            points.setdefault(name, []).append(point)
    return points


def run_labels(runs: Sequence[Path]) -> list[str]:
    """A name for each run: that of its folder, or the path if two folders have the same name.

    Raises:
        UserError: a run is named twice.
    """
    names = [Path(os.path.abspath(run)).name for run in runs]
    labels = [str(run) if names.count(name) > 1 else name for name, run in zip(names, runs, strict=True)]
    if len(set(labels)) < len(labels):
        raise UserError(f"{max(labels, key=labels.count)} is named twice: name each run once")
    return labels


def plot_curves(runs: Mapping[str, Curves], target: Path) -> None:
    """Draw the curves of runs, by name, into a PNG, SVG or PDF.

    Raises:
        UserError: matplotlib is not installed, nothing that is drawn is logged, or the file cannot be written.
    """
    plt = import_pyplot("captioner plot")
    logged = {name for curves in runs.values() for name in curves}
    panels = {title: names for title, names in PANELS.items() if logged & {*names[0], *names[1]}}
    if not panels:
        raise UserError(f"{', '.join(runs)}: nothing is logged that is drawn ({', '.join(PANELS)})")
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(4.2 * columns, 3.1 * rows), layout="constrained", squeeze=False)
    for axis in axes.flat[len(panels) :]:
        axis.set_axis_off()
    for axis, (title, (lines, dots)) in zip(axes.flat, panels.items(), strict=False):
        _draw_panel(axis, runs, lines, dots)
        axis.set_title(title, fontsize=10)
        if "norm" in title:
            axis.set_yscale("log")
    if len(runs) > 1:
        colours = [plt.Line2D([], [], color=_colour(i)) for i in range(len(runs))]
        labels = [literal(run) for run in runs]
        figure.legend(colours, labels, loc="outside lower center", ncols=4, fontsize=9)
    save_figure(figure, target)


def _draw_panel(axis: Any, runs: Mapping[str, Curves], lines: list[str], dots: list[str]) -> None:
    line: dict[str, Any] = {"lw": 0.8}
    dot: dict[str, Any] = {"marker": "o", "ms": 3}
    for number, curves in enumerate(runs.values()):
        for name in (*lines, *dots):
            if name in curves:
                steps, values = zip(*curves[name], strict=True)
                style = {"alpha": 0.6, **line} if name in lines else dot
                axis.plot(steps, values, color=_colour(number), **style)
    axis.set_xlabel("step")
    axis.grid(alpha=0.25)
    if lines and dots:
        axis.plot([], [], color="grey", label="training", **line)
        axis.plot([], [], color="grey", label="validation", **dot)
        axis.legend(fontsize=8)


def _colour(number: int) -> str:
    return COLOURS[number % len(COLOURS)]


def literal(text: str) -> str:
    """Text such as the name of a run for matplotlib, which would take what stands between two $ for a formula."""
    return text.replace("$", r"\$")


def import_pyplot(what: str) -> Any:
    """matplotlib.pyplot without a screen; `what` names the option that needs it.

    Raises:
        UserError: matplotlib is not installed.
    """
    try:
        import matplotlib
    except ImportError:
        raise UserError(f"{what} needs matplotlib: pip install 'captioner[plot]'") from None
    matplotlib.use("Agg")
    import matplotlib.pyplot

    return matplotlib.pyplot


def save_figure(figure: Any, target: Path) -> None:
    """Write a figure whole or not at all.

    Raises:
        UserError: matplotlib does not know the file name's suffix, or the file cannot be written.
    """
    try:
        with atomic_write(target) as part:  # the suffix decides the format
            figure.savefig(part, dpi=100)
    except ValueError as error:
        raise UserError(f"{target} cannot be written ({error}): name a PNG, SVG or PDF") from None
