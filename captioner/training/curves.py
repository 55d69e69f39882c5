"""What a training run has logged, read back and drawn."""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from captioner.errors import UserError
from captioner.files import atomic_write, read_text

Curve = dict[str, list[list[float]]]  # by the name in the log: (step, value), in the order of the steps
LINES = {  # a panel each, where a run has one of them: its title, what is drawn as a line and what as dots and line
    "loss, nats a word": (["train_loss"], ["val_loss"]),
    "perplexity": ([], ["val_perplexity"]),
    "CIDEr-D": ([], ["val_cider"]),
    "BLEU-4": ([], ["val_bleu4"]),
    "reward": (["reward"], []),
    "learning rate": (["lr"], []),
    "gradient norm before clipping": (["grad_norm"], []),
}
# Okabe and Ito's colours, which the colour-blind tell apart.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")


def read(folder: Path) -> Curve:
    """All that a run logged, from the metrics.csv of its parts; of a step that two parts have, the later one's.

    Raises:
        UserError: it is no run, or nothing is logged yet.
    """
    parts = {
        int(each.name[5:]): each / "metrics.csv" for each in folder.glob("logs/part_*") if each.name[5:].isdecimal()
    }
    files = [parts[number] for number in sorted(parts) if parts[number].is_file() and parts[number].stat().st_size]
    if not files:
        raise UserError(f"{folder} has no logs/part_*/metrics.csv: name the --output of a run that has begun to train")
    curve: Curve = {}
    for file in files:
        points: Curve = {}
        try:
            rows = list(csv.DictReader(read_text(file, "text").splitlines()))
        except csv.Error as error:
            raise UserError(f"{file}: is damaged ({error}); put back a copy") from None
        for row in rows:
            for name, text in row.items():
                try:
                    point = [float(int(row["step"])), float(text)]
                except (KeyError, TypeError, ValueError, OverflowError):  # nothing of that name, or a line cut short
                    continue
                points.setdefault(name, []).append(point)
        first = min((point[0] for one in points.values() for point in one), default=math.inf)
        curve = {name: [point for point in one if point[0] < first] for name, one in curve.items()}
        for name, one in points.items():
            curve.setdefault(name, []).extend(one)
    if not any(names := [name for name in curve if name not in ("step", "epoch")]):
        raise UserError(f"{folder} has logged nothing yet: a line comes every --trainer.log_every_n_steps steps")
    return {name: curve[name] for name in names}


def label(runs: Sequence[Path]) -> list[str]:
    """A name for each run: that of its folder, or the path where two have the same name.

    Raises:
        UserError: a run is named twice.
    """
    names = [Path(os.path.abspath(run)).name for run in runs]
    found = [str(run) if names.count(name) > 1 else name for name, run in zip(names, runs, strict=True)]
    if len(set(found)) < len(found):
        raise UserError(f"{max(found, key=found.count)} is named twice: name each run once")
    return found


def draw(curves: Mapping[str, Curve], target: Path) -> None:
    """Draw the curves of runs, by name, into a PNG, SVG or PDF.

    Raises:
        UserError: matplotlib is not there, or the file cannot be written.
    """
    plt = pyplot("captioner plot")
    plt.rcParams["text.parse_math"] = False  # names of runs are no formulas
    logged = {name for curve in curves.values() for name in curve}
    panels = {title: (lines, dots) for title, (lines, dots) in LINES.items() if logged & {*lines, *dots}}
    if not panels:
        raise UserError(f"{', '.join(curves)}: nothing is logged that is drawn ({', '.join(LINES)})")
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(4.2 * columns, 3.1 * rows), layout="constrained", squeeze=False)
    for axis in axes.flat[len(panels) :]:
        axis.set_axis_off()
    for axis, (title, (lines, dots)) in zip(axes.flat, panels.items(), strict=False):
        for number, (run, curve) in enumerate(curves.items()):
            colour = COLOURS[number % len(COLOURS)]
            for name in [*lines, *dots]:
                if name in curve:
                    steps, values = zip(*curve[name], strict=True)
                    style: dict[str, Any] = {"lw": 0.8, "alpha": 0.6} if name in lines else {"marker": "o", "ms": 3}
                    axis.plot(steps, values, color=colour, label=run, **style)
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("step")
        axis.grid(alpha=0.25)
        if lines and dots:
            axis.plot([], [], color="grey", lw=0.8, label="training")
            axis.plot([], [], color="grey", marker="o", ms=3, label="validation")
            axis.legend(*_different(axis, ("training", "validation")), fontsize=8)
        if "norm" in title:
            axis.set_yscale("log")
    if len(curves) > 1:
        figure.legend(*_different(axes[0, 0], tuple(curves)), loc="outside lower center", ncols=4, fontsize=9)
    save(figure, target)


def _different(axis: Any, wanted: Sequence[str]) -> tuple[list[Any], list[str]]:
    """A handle for each of the labels."""
    by_label = {name: handle for handle, name in zip(*axis.get_legend_handles_labels(), strict=True)}
    names = [name for name in wanted if name in by_label]
    return [by_label[name] for name in names], names


def pyplot(what: str) -> Any:
    """matplotlib.pyplot without a screen; `what` needs it.

    Raises:
        UserError: matplotlib is not there.
    """
    try:
        import matplotlib
    except ImportError:
        raise UserError(f"{what} needs matplotlib: pip install 'captioner[plot]'") from None
    matplotlib.use("Agg")
    import matplotlib.pyplot

    return matplotlib.pyplot


def save(figure: Any, target: Path) -> None:
    """Write a figure whole or not at all.

    Raises:
        UserError: an ending nobody knows, or a place that cannot be written.
    """
    try:
        with atomic_write(target) as part:  # the ending says the format
            figure.savefig(part, dpi=100)
    except ValueError as error:
        raise UserError(f"{target} cannot be written ({error}): name a PNG, SVG or PDF") from None
