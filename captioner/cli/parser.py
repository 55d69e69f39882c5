"""The commands and their options: declared by a module each, explained in a page that fits a screen."""

from __future__ import annotations

import importlib
import re
import shutil
import sys
import textwrap
from argparse import ONE_OR_MORE, SUPPRESS, Action
from typing import Any, NoReturn

import yaml
from jsonargparse import ArgumentParser, DefaultHelpFormatter, get_loader, set_loader

from captioner.errors import printable

COMMANDS = {
    "train": "train a model on COCO-style data",
    "pretrain": "train the decoder as a language model, on text alone",
    "predict": "caption images",
    "demo": "caption images on a page in the browser",
    "serve": "caption images over HTTP",
    "evaluate": "caption a validation set and score the captions",
    "score": "score captions that are there already",
    "plot": "draw the curves of training runs",
    "gradients": "measure and draw gradients through time",
    "average": "average the weights of several checkpoints into one model",
    "export": "write a model as ONNX or torch.export graphs, or for the Hugging Face hub",
    "data fetch": "download COCO, Karpathy's splits or Flickr8k, resumably",
    "data inspect": "look at a data set: words, images, duplicates, splits that overlap",
    "data convert": "write a data set as COCO JSON or as WebDataset shards",
    "shapes": "draw the sample data of the demo",
    "completion": "write a script by which a shell completes all this",
}


DEEPEST = 20
LONGEST = 600  # characters of a complaint, which may quote a whole file


def _load(text: str) -> Any:
    """Options and values in YAML, as jsonargparse reads it; nothing that takes more than its size lets expect.

    Raises:
        yaml.YAMLError: it is none, has aliases, a few lines of which may stand for any number of values, or is deep.
    """
    depth = 0
    for event in yaml.parse(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
        if isinstance(event, yaml.AliasEvent):
            raise yaml.YAMLError(f"line {event.start_mark.line + 1}: *{event.anchor}: write the value itself")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > DEEPEST:
            raise yaml.YAMLError(f"line {event.start_mark.line + 1}: more than {DEEPEST} values inside of each other")
    try:
        return _read_yaml(text)
    except ValueError as error:  # a number of thousands of digits
        raise yaml.YAMLError(str(error)) from None


_read_yaml = get_loader("yaml")
set_loader("yaml", _load, (yaml.YAMLError,))


class Help(DefaultHelpFormatter):
    """At most 100 columns; paragraphs stay apart; defaults where there are any, no types."""

    def __init__(self, prog: str, **more: Any) -> None:
        columns = min(100, shutil.get_terminal_size().columns)
        super().__init__(prog, **{**more, "width": columns - 2, "max_help_position": 30})

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        paragraphs = [" ".join(part.split()) for part in text.strip().split("\n\n")]
        wrapper = textwrap.TextWrapper(width, break_long_words=False, break_on_hyphens=False)  # names stay whole
        return "\n\n".join(wrapper.fill(part) for part in paragraphs)

    def _get_type_str(self, action: Action) -> None:
        return None

    def _get_help_string(self, action: Action) -> str:
        text = super()._get_help_string(action)
        return text.replace(" (default: %(default)s)", "") if action.default in (None, "") else text


class Parser(ArgumentParser):
    """The parser of a command, whose complaints are one line.

    A module of :mod:`captioner.cli` with many options names in ``MAIN`` those that ``--help`` explains;
    ``--help all`` explains all.
    """

    def __init__(self, name: str) -> None:
        self.command: Any = importlib.import_module(f"captioner.cli.{name.replace(' ', '_')}")
        super().__init__(prog=f"captioner {name}", description=self.command.__doc__, formatter_class=Help)
        self.command.configure(self)

    def parse(self, arguments: list[str]) -> Any:
        """The options, instantiated.

        Raises:
            SystemExit: they are none, or --help or the like was asked for.
        """
        try:
            return self.instantiate(self.parse_args(arguments))
        except UnicodeDecodeError as error:
            self.error(f"--config: byte {error.start} is not UTF-8 text")

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """One line on stderr, exit code 2; what was wrong in the words of the command line, not of Python."""
        text = " ".join(message.split())
        if found := re.match(r'Parser key "(.+?)": Expected a (.+?)\. Got value: (.*)', text):
            key, kind, value = found.groups()
            text = f"{self._shown(key)} is {value}: expected {_kind(kind)}"
        elif found := re.match(r"the following arguments are required: (.+)", text):
            text = f"{' and '.join(map(self._shown, found[1].split(', ')))} needed"
        text = printable(text if len(text) < LONGEST else f"{text[:LONGEST]} …")
        text = text.replace("Problems parsing config:", "--config:").replace(' in "<unicode string>",', " in")
        print(f"{self.prog}: error: {text} (see {self.prog} --help)", file=sys.stderr)
        sys.exit(2)

    def page(self, whole: bool) -> str:
        """The help, of all options or of the main ones."""
        options = [action for action in self._actions if action.option_strings]
        required = [f"{each.option_strings[0]} …" for each in options if each.required]
        positional = [_usage(action) for action in self._actions if not action.option_strings]
        self.usage = " ".join([self.prog, *positional, *required, "[options]"])
        main = getattr(self.command, "MAIN", "").split()
        if main and not whole:
            rest = [each for each in options if each.dest not in (*main, "help") and each.help != SUPPRESS]
            names = [f"--{each.dest.split('.')[0]}{'.…' if '.' in each.dest else ''}" for each in rest]
            names = [name for name in dict.fromkeys(names) if f"{name}.…" not in names]
            self.epilog = f"{self.prog} --help all explains {len(rest)} more: {', '.join(names)}."
            for each in rest:
                each.help = SUPPRESS
        return self.format_help()

    def _shown(self, dest: str) -> str:
        """``--length_norm`` for length_norm, ``IMAGE`` for images."""
        found = next((action for action in self._actions if action.dest == dest), None)
        if found is None or found.option_strings:
            return f"--{dest}"
        shown = str(found.metavar or dest)
        return dest if shown.startswith("{") else shown  # {one,of,these}


def _kind(annotation: str) -> str:
    """What a type is called."""
    names = {"<class 'float'>": "a number", "<class 'int'>": "a whole number", "<class 'bool'>": "true or false"}
    if found := re.fullmatch(r"typing\.Literal\[(.+)\]", annotation):
        return "one of " + found[1].replace("'", "")
    return names.get(annotation, annotation)


def _usage(positional: Action) -> str:
    name = str(positional.metavar or positional.dest)
    return f"{name} [{name} …]" if positional.nargs == ONE_OR_MORE else name
