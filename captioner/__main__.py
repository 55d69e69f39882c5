"""The command line: ``captioner COMMAND …``, the same as ``python -m captioner COMMAND …``."""

from __future__ import annotations

import io
import os
import re
import sys
from collections.abc import Sequence
from contextlib import suppress

from captioner import __version__
from captioner.cli.options import check_names
from captioner.cli.parser import COMMANDS, Parser, no_command
from captioner.errors import REFUSALS, UserError, printable
from captioner.files import text_encoding

OVERVIEW = """usage: captioner COMMAND [options]

Point it at COCO-style data and get a captioning model; point it at an image and get a caption.

{commands}

captioner COMMAND --help explains the main options of a command, --help all explains all.
A boolean is --name or --no_name; --n-best is the same option as --n_best."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Returns:
        The exit code: 0; 1 if some images could not be captioned; 2 for an error that the user can fix; 130 after
        Ctrl-C; 141 if the reader of a pipe has gone.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    name = arguments.pop(0) if arguments else "--help"
    if name == "data" and arguments and not arguments[0].startswith("-"):  # a command of two words
        name += " " + arguments.pop(0)
    if sys.stdout is None:  # closed
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")  # of characters that it cannot encode
    try:
        try:
            code = _run(name, arguments)
        except SystemExit:  # of --print_config
            sys.stdout.flush()
            raise
        sys.stdout.flush()  # before the end, so that the error of a full disk is caught
        return code
    except UserError as error:
        return _fail(name, str(error))
    except KeyboardInterrupt as stop:
        _print_error(f"captioner {name}: interrupted{str(stop) and f'; {stop}'}")
        return 130
    except BrokenPipeError:  # the reader of a pipe, such as head, has gone
        _flush_or_discard()
        return 141
    except OSError as error:
        return _fail(name, _explain_os_error(error))
    except (RuntimeError, TypeError, MemoryError) as error:  # from torch, anywhere in the program
        reason = next(iter(str(error).splitlines()), "").rstrip(". ")
        if reason.startswith("DataLoader worker (pid"):
            advice = "memory may be short, use fewer workers (--workers or --data.workers)"
            return _fail(name, f"a worker process died ({reason}): {advice}")
        if isinstance(error, MemoryError) or re.search("out of memory|allocate memory", reason):
            return _fail(name, f"the memory is too small ({printable(reason)[:200]}): use smaller sizes or batches")
        if re.search(r"\bMPS\b", reason):
            advice = "use the CPU, or for this operation alone by PYTORCH_ENABLE_MPS_FALLBACK=1"
            return _fail(name, f"the MPS device cannot do this ({printable(reason)}): {advice}")
        raise


def _run(name: str, arguments: list[str]) -> int:
    if name == "help" and arguments:
        name, arguments = " ".join(arguments), ["--help"]
    if name in ("--help", "-h", "help") or (name == "data" and arguments[:1] in (["--help"], ["-h"])):
        print(OVERVIEW.format(commands="\n".join(f"  {name:<14}{about}" for name, about in COMMANDS.items())))
        return 0
    if name == "--version":
        print(f"captioner {__version__}")
        return 0
    if name not in COMMANDS:
        raise UserError(no_command(name))
    parser = Parser(name)
    if any(argument.partition("=")[0] in ("--help", "-h") for argument in arguments):
        print(parser.help_page(everything=arguments[-1] in ("all", "--help=all")), end="")
        return 0
    try:
        options = parser.parse([_with_underscores(argument) for argument in arguments])
        if "report" in options:  # which shows how it was made
            options["command_line"] = ["captioner", *name.split(), *arguments]
        check_names(parser, options)
        with text_encoding(options.get("encoding") or ""):
            return parser.command.run(options) or 0
    except UserError as error:
        about = re.match(r"(?:--)?([\w.]+) ", str(error))
        raise UserError(f"{parser.place(about[1]) if about else ''}{error}") from None


def _fail(name: str, message: str) -> int:
    command = f"captioner {name}" if name in COMMANDS else "captioner"
    _print_error(f"{command}: error: {message}")
    return 2


def _print_error(message: str) -> None:
    from captioner.progress import close_bars

    close_bars()
    print(message, file=sys.stderr)


def _explain_os_error(error: OSError) -> str:
    """The message for an error of the operating system that names a file or is one of :data:`REFUSALS`."""
    if error.filename is None and error.errno not in REFUSALS:
        raise error
    _flush_or_discard()
    where = printable(str(error.filename or "the output"))
    advice = "free disk space, fix the permissions or name another" if error.errno in REFUSALS else "name another"
    return f"{where} cannot be used ({error.strerror}): {advice}"


def _flush_or_discard() -> None:
    """Flush standard output; if it cannot be written, drop its buffer, so that writing at exit does not fail again."""
    try:
        sys.stdout.flush()
    except OSError:
        with suppress(OSError):  # it has no file descriptor
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _with_underscores(argument: str) -> str:
    """``--n_best=3`` for ``--n-best=3``."""
    if not argument.startswith("--"):
        return argument
    option, equals, value = argument.partition("=")
    return "--" + option[2:].replace("-", "_") + equals + value


if __name__ == "__main__":
    sys.exit(main())
