"""The terminal: one progress bar a stage, on standard error, and every message above it.

tqdm, which torch and Lightning bring, draws the bar. Its own ``tqdm.write`` would have to be called by everything that
prints, warnings of libraries included, so the streams are redirected while a bar is open.
"""

from __future__ import annotations

import os
import sys
import textwrap
import time
from collections.abc import Callable
from typing import Any, ClassVar

from tqdm import tqdm

MAX_COLUMNS = 100


class Bar(tqdm):
    """A bar as wide as the terminal, up to MAX_COLUMNS, with the time left; nothing where stderr is no terminal.

    While a bar is open, whole lines written to standard output or standard error appear above it. The time left is that
    of the mean rate since the first update, which also loads and warms up; it is shown from the second update on.

    Args:
        iterable: is iterated over and counted, or None where :meth:`update` is called
        desc: the name of the stage
        total: the number of items; len(iterable) if None
        unit: the name of several items
        batch: items that are done together; the bar of an iterable moves after each batch
        note: the text after the count, of the bar
        more: other options of tqdm
    """

    shown: ClassVar[list[Bar]] = []
    FORMAT = "{desc} |{bar}| {n_fmt}/{total_fmt}{unit}{postfix}"

    def __init__(
        self,
        iterable: Any = None,
        desc: str = "",
        total: int | None = None,
        unit: str = "images",
        batch: int = 1,
        note: Callable[[Bar], str] | None = None,
        **more: Any,
    ) -> None:
        self.note = note or time_left
        self.first: tuple[float, float] | None = None  # count and time of the first update
        self.last = (0.0, 0.0)  # and of the last one
        self.begun = time.monotonic()
        self.took: float | None = None  # seconds until all items were counted
        # By time alone the first image of a batch would be shown, and those that are done with it a batch later.
        every = {"mininterval": 0, "maxinterval": float("inf"), "miniters": batch} if batch > 1 else {}
        file = getattr(sys.stderr, "stream", sys.stderr)  # that of an earlier bar
        off = True if file is None else None  # None: where it is no terminal
        fixed = {"bar_format": self.FORMAT, "dynamic_ncols": True, "file": file, "disable": off}
        super().__init__(iterable, desc, total, unit=f" {unit}" if unit else "", **{**fixed, **every, **more})
        if not self.disable:
            Bar.shown.append(self)
            _redirect()

    @property
    def rate(self) -> float | None:
        """Items a second between the first and the last update; None before the second."""
        if self.first is None or self.last[0] <= self.first[0]:
            return None
        return (self.last[0] - self.first[0]) / max(1e-9, self.last[1] - self.first[1])

    def update(self, n: float | None = 1) -> bool | None:
        """Count `n` more items."""
        if self.disable:
            return None
        count = self.n + (n or 0)
        if count - self.last_print_n >= self.miniters:  # at the end of a batch
            self.last = (count, time.monotonic())
            self.first = self.first or self.last
        return super().update(n)

    @property
    def format_dict(self) -> dict[str, Any]:
        """The values of tqdm, with the note after the count."""
        values = super().format_dict
        columns = min(MAX_COLUMNS, (values["ncols"] or MAX_COLUMNS) - 2)  # ^C fits beside it
        return {**values, "ncols": columns, "postfix": self.note(self)}

    def close(self) -> None:
        """Leave the bar as it is, or remove it if `leave` is false; after the last one the streams are as before."""
        super().close()
        if self in Bar.shown:
            Bar.shown.remove(self)
            _redirect()


def time_left(bar: Bar) -> str:
    """``0:29 left``, or at the end ``in 0:44``, the time that it took."""
    if bar.total and bar.n >= bar.total:
        if bar.took is None:  # later redraws show the same
            bar.took = time.monotonic() - bar.begun
        return f"in {Bar.format_interval(bar.took)}"
    return f"{Bar.format_interval((bar.total - bar.n) / bar.rate)} left" if bar.total and bar.rate else ""


def warn(message: str) -> None:
    """Print a warning on standard error, on a terminal in lines that end between words."""
    if sys.stderr.isatty():
        columns = os.get_terminal_size(sys.stderr.fileno()).columns
        options: dict[str, Any] = {"break_long_words": False, "break_on_hyphens": False}  # names stay whole
        message = textwrap.fill(message, columns, subsequent_indent="  ", **options)
    print(message, file=sys.stderr, flush=True)


def close_bars() -> None:
    """Close the bars that an error or Ctrl-C has left open, before its message."""
    for bar in [*Bar.shown]:
        bar.close()


class _Above:
    """A stream of the terminal whose lines are written above the bars, each when it is whole."""

    def __init__(self, stream: Any) -> None:
        self.stream, self.begun = stream, ""

    def write(self, text: str) -> int:
        *lines, self.begun = (self.begun + text).split("\n")
        if lines:
            with tqdm.get_lock():
                for bar in Bar.shown:
                    bar.clear(nolock=True)
                self.stream.write("".join(f"{line}\n" for line in lines))
                self.stream.flush()
                for bar in Bar.shown:
                    bar.refresh(nolock=True)
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def _redirect() -> None:
    """Redirect the streams of the terminal if a bar is shown, else give them back."""
    for name in ("stdout", "stderr"):
        stream: Any = getattr(sys, name)
        if Bar.shown and not isinstance(stream, _Above) and stream is not None and stream.isatty():
            setattr(sys, name, _Above(stream))
        elif not Bar.shown and isinstance(stream, _Above):
            setattr(sys, name, stream.stream)
            stream.stream.write(stream.begun)
