"""Draw the curves of training runs: loss, scores, learning rate and gradient norm, several runs in one image.

Example: captioner plot runs/lstm runs/attention --output curves.png

The runs may be of train or pretrain, finished or in progress.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

WRITES = "output json"


def configure(parser: Any) -> None:
    """Declare the options."""
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folder of a run: the --output of train or pretrain")
    parser.add_argument("--output", type=str, default="curves.png", help="draw the curves to this PNG, SVG or PDF")
    parser.add_argument("--json", type=str, help="also write the numbers to this JSON file")


def run(options: Any) -> None:
    """Read, draw and write; see the module's docstring."""
    from captioner.files import write_json
    from captioner.training.curves import check_figure, plot_curves, read_logs, run_labels

    check_figure("--output", Path(options.output))
    folders = [Path(name) for name in options.runs]
    runs = {label: read_logs(folder) for label, folder in zip(run_labels(folders), folders, strict=True)}
    if options.json:
        write_json(options.json, runs)
    plot_curves(runs, Path(options.output))
    print(options.output)
