"""The logs of training runs, read and drawn."""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

from captioner.errors import UserError, counted, install_hint
from captioner.files import atomic_write, check_writable, read_text

Curves = dict[str, list[list[float]]]  # by the name in the log: (step, value), in the order of the steps
PANELS = {  # title: the values drawn if logged; those of validation as dots with a line
    "loss, nats a word": ("train_loss", "val_loss"),
    "perplexity": ("val_perplexity",),
    "CIDEr-D": ("val_cider",),
    "BLEU-4": ("val_bleu4",),
    "reward": ("reward",),
    "learning rate": ("lr",),
    "gradient norm before clipping": ("grad_norm",),
}
FIGURES = (".png", ".svg", ".pdf")
LINE: dict[str, Any] = {"lw": 0.8}
DOTS: dict[str, Any] = {"marker": "o", "ms": 3}
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")  # of Okabe and Ito


def read_logs(folder: Path) -> Curves:
    """All that a run logged, from the metrics.csv of its parts; of a step in two parts, the values of the later one."""
    files = [file for file in folder.glob("logs/part_*/metrics.csv") if file.is_file() and file.stat().st_size]
    files = [file for file in files if file.parent.name[5:].isdecimal()]
    if not files:
        raise UserError(f"{folder} has no logs/part_*/metrics.csv: name the --output of a run that has started")
    curves: Curves = {}
    for file in sorted(files, key=lambda file: int(file.parent.name[5:])):
        points = _read_csv(file)
        first = min((step for values in points.values() for step, _ in values), default=math.inf)
        curves = {name: [point for point in values if point[0] < first] for name, values in curves.items()}
        for name, values in points.items():
            curves.setdefault(name, []).extend(values)
    curves = {name: values for name, values in curves.items() if name not in ("step", "epoch")}
    if not curves:
        raise UserError(f"{folder} has logged nothing yet: a line is written every --trainer.log_every_n_steps steps")
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
    """A name for each run: that of its folder, or the path if two folders have the same name."""
    names = [Path(os.path.abspath(run)).name for run in runs]
    labels = [str(run) if names.count(name) > 1 else name for name, run in zip(names, runs, strict=True)]
    if len(set(labels)) < len(labels):
        raise UserError(f"{max(labels, key=labels.count)} is named twice: name each run once")
    return labels


def plot_curves(runs: Mapping[str, Curves], target: Path) -> None:
    """Draw the curves of runs, by name, into a PNG, SVG or PDF."""
    plt = import_pyplot("captioner plot")
    logged = {name for curves in runs.values() for name in curves}
    panels = {title: names for title, names in PANELS.items() if logged & {*names}}
    if not panels:
        raise UserError(f"{', '.join(runs)}: nothing is logged that is drawn ({', '.join(PANELS)})")
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(4.2 * columns, 3.1 * rows), layout="constrained", squeeze=False)
    for axis in axes.flat[len(panels) :]:
        axis.set_axis_off()
    for axis, (title, names) in zip(axes.flat, panels.items(), strict=False):
        for colour, curves in zip(cycle(COLOURS), runs.values(), strict=False):
            for name in (name for name in names if name in curves):
                style = DOTS if name.startswith("val_") else {"alpha": 0.6, **LINE}
                axis.plot(*zip(*curves[name], strict=True), color=colour, **style)
        if len(names) > 1:
            axis.plot([], [], color="grey", label="training", **LINE)
            axis.plot([], [], color="grey", label="validation", **DOTS)
            axis.legend(fontsize=8)
        axis.grid(alpha=0.25)
        axis.set_xlabel("step")
        axis.set_title(title, fontsize=10)
        if "norm" in title:
            axis.set_yscale("log")
    if len(runs) > 1:
        lines = [plt.Line2D([], [], color=colour) for colour, _ in zip(cycle(COLOURS), runs, strict=False)]
        labels = [literal(run) for run in runs]
        figure.legend(lines, labels, loc="outside lower center", ncols=4, fontsize=9)
    save_figure(figure, target)


def plot_reliability(found: Mapping[str, Any], target: Path) -> None:
    """Draw the curve of :func:`captioner.metrics.calibration.summary` into a PNG, SVG or PDF.

    The bars are 95 % intervals, 1.96 standard errors of a share to either side.
    """
    plt = import_pyplot("--plot")
    confidence, right, captions = (
        [bin[name] for bin in found["curve"]] for name in ("confidence", "right", "captions")
    )
    errors = [1.96 * math.sqrt(p * (1 - p) / n) for p, n in zip(right, captions, strict=True)]
    figure, axis = plt.subplots(figsize=(4.6, 4.4), layout="constrained")
    axis.plot([0, 1], [0, 1], color="grey", ls="--", label="exact", **LINE)
    axis.errorbar(confidence, right, errors, color=COLOURS[0], capsize=2, label="captions, in ten bins", **DOTS, lw=1)
    axis.set(xlim=(0, 1), ylim=(0, 1), xlabel="confidence", ylabel="share of right captions", aspect="equal")
    axis.set_title(
        f"expected calibration error {found['ece']:.3f}, {counted(found['captions'], 'caption')}", fontsize=10
    )
    axis.grid(alpha=0.25)
    axis.legend(fontsize=8, loc="upper left")
    save_figure(figure, target)


def literal(text: str) -> str:
    """Text such as the name of a run escaped for matplotlib, which reads text between two $ as a formula."""
    return text.replace("$", r"\$")


def import_pyplot(what: str) -> Any:
    """matplotlib.pyplot without a screen; `what` names the option that needs it."""
    try:
        import matplotlib
    except ImportError:
        raise UserError(f"{what} needs matplotlib: {install_hint('plot')}") from None
    matplotlib.use("Agg")
    import matplotlib.pyplot

    return matplotlib.pyplot


def check_figure(option: str, target: Path) -> None:
    """Check, before hours of work, that :func:`save_figure` can write a file; UserError if not."""
    import_pyplot(option)
    if target.suffix.lower() not in FIGURES:
        raise UserError(f"{option} is {target}: name a file that ends in {', '.join(FIGURES)}")
    check_writable(target)


def save_figure(figure: Any, target: Path) -> None:
    """Write a figure whole or not at all, in the format of the file name's suffix, one of FIGURES."""
    with atomic_write(target) as part:
        figure.savefig(part, dpi=100)
