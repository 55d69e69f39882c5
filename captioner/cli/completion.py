"""Write the script with which a shell completes commands, options, their values and file names.

Example: captioner completion bash > ~/.local/share/bash-completion/completions/captioner

New sessions of bash load it from there. For zsh, name it _captioner in a folder of $fpath; for fish,
~/.config/fish/completions/captioner.fish.
"""

from __future__ import annotations

from argparse import Action, ArgumentParser
from typing import Any, Literal

from captioner.config import VOCABULARIES
from captioner.errors import UserError, install_hint


def configure(parser: Any) -> None:
    """Declare the options."""
    parser.add_argument("shell", type=Literal["bash", "zsh", "fish"], help="which shell")


def run(options: Any) -> None:
    """Print the script."""
    try:
        import shtab
    except ImportError:
        raise UserError(f"completion needs shtab: {install_hint('completion')}") from None
    from captioner.cli.parser import COMMANDS, Parser

    root = ArgumentParser("captioner")
    root.add_argument("--version", action="version", version="")
    groups = {"": root.add_subparsers()}
    for name, about in COMMANDS.items():
        first, _, last = name.rpartition(" ")
        if first not in groups:
            groups[first] = groups[""].add_parser(first, help="data sets").add_subparsers()
        command = groups[first].add_parser(last, help=about)
        for action in Parser(name)._actions:
            if action.dest not in ("help", "print_config"):
                _add_copy(action, command)
    print(shtab.complete(root, options.shell))


def _add_copy(action: Action, parser: ArgumentParser) -> None:
    """Declare an option of a :class:`Parser` as plain argparse, which shtab understands."""
    import shtab

    names, about = action.option_strings or [action.dest], (action.help or "").replace("%", "%%")
    metavar = str(action.metavar or "")
    if action.nargs == 0:
        parser.add_argument(*names, action="store_true", help=about)
    elif metavar.startswith("{"):  # {one,of,these}
        parser.add_argument(*names, nargs=action.nargs, choices=metavar[1:-1].split(","), help=about)
    else:
        new: Any = parser.add_argument(*names, nargs=action.nargs, help=about)
        new.complete = _names_and_files(action.dest) or shtab.FILE


def _names_and_files(dest: str) -> dict[str, Any] | None:
    """What shtab completes for an option whose value is one of some names or a file; None for other options."""
    from captioner.cli.parser import shipped_configs

    shipped = ["shipped"]
    known = {"config": shipped_configs(), "checkpoint": shipped, "init_from": shipped, "data.vocabulary": VOCABULARIES}
    if dest not in known:
        return None
    names, function = " ".join(known[dest]), f"_captioner_{dest.replace('.', '_')}_files"
    return {
        "bash": function,
        "zsh": f"{{compadd -- {names}; _files}}",
        "fish": f"{names} (__fish_complete_path (commandline -ct))",
        "preamble": {"bash": f"{function}() {{ compgen -W '{names}' -- $1; _shtab_compgen_files $1; }}"},
    }
