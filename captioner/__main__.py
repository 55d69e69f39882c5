"""The command line: ``captioner COMMAND …``, the same as ``python -m captioner COMMAND …``."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import suppress

from captioner import __version__
from captioner.cli.parser import COMMANDS, Parser
from captioner.errors import REFUSALS, UserError, printable

OVERVIEW = "\n".join(
    [
        "usage: captioner COMMAND [options]",
        "",
        "Point it at COCO-style data and get a captioning model; point it at an image and get a caption.",
        "",
        *(f"  {name:<14}{about}" for name, about in COMMANDS.items()),
        "",
        "captioner COMMAND --help shows the main options of a command, --help all shows all.",
    ]
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; the exit code is 0, 1 where some images could not be captioned, 2 for what the user can fix."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    name = arguments.pop(0) if arguments else "--help"
    if name == "data" and arguments and not arguments[0].startswith("-"):  # a command of two words
        name += " " + arguments.pop(0)
    if sys.stdout is None:  # closed
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    try:
        try:
            code = _run(name, arguments)
        except SystemExit:  # of --print_config
            sys.stdout.flush()
            raise
        sys.stdout.flush()  # here, where a full disk can still be said
        return code
    except UserError as error:
        return _complain(name, str(error))
    except KeyboardInterrupt:
        print(f"captioner {name}: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of a pipe, such as head, has gone
        _silence()
        return 141
    except OSError as error:
        if error.filename is None and error.errno not in REFUSALS:
            raise
        try:
            sys.stdout.flush()
        except OSError:
            _silence()
        where = printable(str(error.filename or "the output"))
        advice = "make room, give it the right, or name another" if error.errno in REFUSALS else "name another"
        return _complain(name, f"{where} cannot be used ({error.strerror}): {advice}")
    except RuntimeError as error:  # of torch, wherever the program is at that moment
        if not str(error).startswith("DataLoader worker (pid"):
            raise
        what = str(error).splitlines()[0].rstrip(". ")
        few = "memory may be short, so use fewer of them (--workers or --data.workers)"
        return _complain(name, f"a process that reads images died ({what}): {few}")


def _run(name: str, arguments: list[str]) -> int:
    if name in ("--help", "-h", "help") or (name == "data" and arguments[:1] in (["--help"], ["-h"])):
        print(OVERVIEW)
        return 0
    if name == "--version":
        print(f"captioner {__version__}")
        return 0
    if name not in COMMANDS:
        raise UserError(f"there is no command {name!r}: one of {', '.join(COMMANDS)}")
    parser = Parser(name)
    if "--help" in arguments or "-h" in arguments:
        print(parser.help_page(everything=arguments[-1] == "all"), end="")
        return 0
    return parser.command.run(parser.parse([_underscored(argument) for argument in arguments])) or 0


def _complain(name: str, line: str) -> int:
    print(f"captioner {name}: error: {line}" if name in COMMANDS else f"captioner: error: {line}", file=sys.stderr)
    return 2


def _silence() -> None:
    """Drop what is left in the buffer of standard output: writing it would fail once more, at the exit."""
    with suppress(OSError):  # it has no number
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _underscored(argument: str) -> str:
    """``--n-best=3`` and ``--n_best=3`` are the same option."""
    if not argument.startswith("--"):
        return argument
    option, equals, value = argument.partition("=")
    return "--" + option[2:].replace("-", "_") + equals + value


if __name__ == "__main__":
    sys.exit(main())
