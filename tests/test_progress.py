"""Progress bars on a terminal, messages above them, and the time that is left."""

import sys

import pytest
from terminal import terminal

from captioner import progress
from captioner.progress import Bar, close_bars

pytest.importorskip("termios", reason="a pseudo-terminal")


@pytest.fixture
def clock(monkeypatch):
    """The time, which only the test moves on."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


@pytest.mark.parametrize("columns", [40, 80, 100, 200])
def test_messages_are_above_the_bar(monkeypatch, columns):
    with terminal(columns, monkeypatch) as screen:
        before = sys.stdout, sys.stderr
        for i in Bar(range(3), "stage", unit="things"):
            print(f"line {i}")
            print("half", end=" ", file=sys.stderr)
            print("a line", file=sys.stderr)
            sys.stderr.write(f"beware {i}\n")
        assert (sys.stdout, sys.stderr) == before
    assert screen.lines[:3] == ["line 0", "half a line", "beware 0"]
    assert len(screen.lines) == 10
    assert screen.lines[-1].startswith("stage |")
    assert screen.lines[-1].endswith("| 3/3 things, in 00:00")
    assert screen.wrapped == []
    assert max(map(len, screen.past + screen.lines)) <= min(columns - 2, 100)


def test_a_begun_line_is_not_lost(monkeypatch):
    with terminal(80, monkeypatch) as screen:
        bar = Bar(total=2, leave=False)
        print("no end", end="")
        bar.close()
        bar.close()
        print(" yet")
    assert screen.lines == ["no end yet"]


def test_nothing_without_a_terminal(capsys):
    before = sys.stdout, sys.stderr
    for i in Bar(range(2), "stage"):
        print(i)
        assert (sys.stdout, sys.stderr) == before
    bar = Bar(total=3)
    bar.update(2)
    bar.close()
    assert capsys.readouterr() == ("0\n1\n", "")


def test_no_standard_error(monkeypatch):
    monkeypatch.setattr(sys, "stderr", None)
    assert list(Bar(range(3))) == [0, 1, 2]


def test_output_to_a_file_is_left_alone(monkeypatch, tmp_path):
    with terminal(80, monkeypatch) as screen, open(tmp_path / "out", "w") as file, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", file)
        for i in Bar(range(3), "stage"):
            assert sys.stdout is file
            print(i)
    assert (tmp_path / "out").read_text() == "0\n1\n2\n"
    assert len(screen.lines) == 1


def test_the_time_left_is_right_from_the_second_batch_on(monkeypatch, clock):
    """Batches of 10 images in 2 seconds; the first one takes 60."""

    def images():
        for i in range(100):
            if i % 10 == 0:
                clock[0] += 60 if i == 0 else 2
            yield i

    with terminal(80, monkeypatch) as screen:
        assert len(list(Bar(images(), "captions", 100, batch=10))) == 100
    states = [state.rpartition("| ")[2] for state in screen.states("captions")]
    expected = [f"{n}/100 images, 00:{(100 - n) // 5:02} left" for n in range(20, 100, 10)]
    assert states == ["0/100 images", "10/100 images", *expected, "100/100 images, in 01:18"]


def test_updates_by_one_move_the_bar_by_batches(monkeypatch, clock):
    """As of images that are counted one by one where they come from."""
    with terminal(80, monkeypatch) as screen:
        bar = Bar(desc="captions", total=40, initial=10, batch=10)
        for i in range(30):
            clock[0] += 5 * (i % 10 == 0)
            bar.update(1)
        bar.close()
    states = [state.rpartition("| ")[2] for state in screen.states("captions")]
    assert states == ["10/40 images", "20/40 images", "30/40 images, 00:05 left", "40/40 images, in 00:15"]


def test_the_time_that_it_took_stays(monkeypatch, clock):
    """However long a slow command waits before it closes the bar."""
    with terminal(80, monkeypatch) as screen:
        bar = Bar(desc="captions", total=2, batch=2)
        clock[0] = 5
        bar.update(2)
        clock[0] = 60
        bar.refresh()
        bar.close()
    assert [state.rpartition("| ")[2] for state in screen.states("captions")][-1:] == ["2/2 images, in 00:05"]
    assert sum("2/2" in state for state in screen.states("captions")) == 1


def test_open_bars_are_closed_before_an_error(monkeypatch):
    with terminal(80, monkeypatch) as screen:
        bar = Bar(total=10, desc="captions")
        bar.update(4)
        bar.refresh()
        close_bars()
        print("error: stopped", file=sys.stderr)
    assert screen.lines[-1] == "error: stopped"
    assert "| 4/10 images" in screen.lines[0]
    assert not Bar.shown
