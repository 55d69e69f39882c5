"""A terminal for tests: a pseudo-terminal of some columns, and what a person sees on it."""

from __future__ import annotations

import os
import re
import sys
import threading
from contextlib import contextmanager


class Screen:
    """The lines of a terminal, after the text and the control characters that progress bars use."""

    def __init__(self, columns: int) -> None:
        self.columns, self.rows, self.row, self.column = columns, [""], 0, 0
        self.wrapped: list[str] = []  # lines that were longer than the terminal
        self.past: list[str] = []  # lines that were overwritten, such as earlier states of a bar

    def feed(self, text: str) -> None:
        for part in re.findall(r"\x1b\[A|\r?\n|\r|[^\r\n\x1b]+|\x1b.{3}", text, re.DOTALL):
            part = part.replace("\t", " ")
            if part == "\x1b[A":
                self.row -= 1
            elif part == "\r":
                self.past.append(self.rows[self.row].rstrip())
                self.column = 0
            elif part in ("\n", "\r\n"):
                self.column = 0
                self.row += 1
                if self.row == len(self.rows):
                    self.rows.append("")
            else:
                assert part.isprintable(), repr(part)
                row = self.rows[self.row].ljust(self.column)
                self.rows[self.row] = row[: self.column] + part + row[self.column + len(part) :]
                self.column += len(part)
                if self.column > self.columns:
                    self.wrapped.append(self.rows[self.row])

    @property
    def lines(self) -> list[str]:
        """The lines that are left, without empty ones."""
        return [row.rstrip() for row in self.rows if row.strip()]

    def states(self, start: str) -> list[str]:
        """The different states, in their order, of the bar that starts so."""
        return list(dict.fromkeys(line for line in self.past + self.lines if line.startswith(start)))


@contextmanager
def terminal(columns: int, monkeypatch):
    """Standard output and standard error are a terminal of so many columns; yields its :class:`Screen`."""
    import fcntl
    import struct
    import termios

    screen, received = Screen(columns), []
    master, slave = os.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("4H", 40, columns, 0, 0))

    def read() -> None:
        with open(master, "rb", buffering=0, closefd=False) as file:
            try:
                while data := file.read(4096):
                    received.append(data)
            except OSError:  # the end of a pseudo-terminal
                pass

    thread = threading.Thread(target=read)
    thread.start()
    with open(slave, "w", encoding="utf-8") as stream, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", stream)
        patch.setattr(sys, "stderr", stream)
        yield screen
    thread.join()
    os.close(master)
    screen.feed(b"".join(received).decode())
