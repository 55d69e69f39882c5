"""The table of commands, and the parser that reads their options and prints their help."""

from __future__ import annotations

import copy
import importlib
import os
import re
import shutil
import sys
import textwrap
from argparse import ONE_OR_MORE, SUPPRESS, Action
from difflib import get_close_matches
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn

import yaml
from jsonargparse import (
    ActionConfigFile,
    ActionYesNo,
    ArgumentParser,
    DefaultHelpFormatter,
    Namespace,
    get_loader,
    set_loader,
)

from captioner.errors import UserError, did_you_mean, printable
from captioner.files import check_yaml

COMMANDS = {
    "train": "train a model on COCO-style data",
    "pretrain": "train the decoder as a language model, on text alone",
    "predict": "caption images",
    "demo": "caption images on a page in the browser",
    "serve": "caption images over HTTP",
    "evaluate": "caption a validation set and score the captions",
    "score": "score existing captions",
    "calibrate": "fit how likely a model's captions are right",
    "plot": "draw the curves of training runs",
    "gradients": "measure and draw gradients through time",
    "average": "average the weights of several checkpoints into one model",
    "export": "write a model as ONNX or torch.export graphs, or for the Hugging Face hub",
    "data fetch": "download COCO, Karpathy's splits or Flickr8k, resumably",
    "data inspect": "check a data set: words, images, duplicates, splits that overlap",
    "data convert": "write a data set as COCO JSON or as WebDataset shards",
    "shapes": "draw the sample data of the demo",
    "weights": "show which weights are used, or put them into the cache",
    "completion": "write a script that completes commands and options in a shell",
}

# Names that other tools have for commands, options and values, with those of captioner.
ELSEWHERE = {
    "accumulate_grad": "accumulate_grad_batches",
    "arch": "encoder",
    "backbone": "encoder",
    "bs": "batch_size",
    "caption": "predict",
    "ckpt": "checkpoint",
    "cuda": "gpu device devices",
    "download": "data fetch",
    "fit": "train",
    "gpu": "cuda device devices",
    "gpus": "devices device",
    "infer": "predict",
    "learning_rate": "lr",
    "max_epochs": "epochs",
    "model": "checkpoint",
    "num_beams": "beam",
    "num_epochs": "epochs",
    "num_workers": "workers",
    "out": "output",
    "test": "evaluate",
    "validate": "evaluate",
    "verbose": "help",
}
SHIPPED_CONFIGS = Path(__file__).parents[1] / "configs"  # installed with the package
MAX_MESSAGE = 600  # characters of an error message, which may quote a whole file


def _load_yaml(text: str) -> Any:
    """Parse YAML as jsonargparse does, but refuse what :func:`check_yaml` does."""
    check_yaml(text)
    try:
        return _jsonargparse_load(text)
    except ValueError:
        raise yaml.YAMLError("a number of thousands of digits: write a smaller one") from None


_jsonargparse_load = get_loader("yaml")
set_loader("yaml", _load_yaml, (yaml.YAMLError,))


class Flag(ActionYesNo):
    """A boolean: ``--data.lines`` and ``--data.no_lines``; ``--no_bad_ending`` and ``--bad_ending``."""

    def __init__(self, option_strings: list[str], dest: str, **more: Any) -> None:
        super().__init__(option_strings=option_strings, dest=dest, **more)
        group, dot, name = option_strings[0].removeprefix("--").rpartition(".")
        opposite = name.removeprefix("no_") if name.startswith("no_") else f"no_{name}"
        self.option_strings = [option_strings[0], f"--{group}{dot}{opposite}"]

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        setattr(namespace, self.dest, option_string == self.option_strings[0])

    def _check_type(self, value: Any) -> Any:  # of a config file
        if not isinstance(value, bool):
            raise TypeError(f'Parser key "{self.dest}": Expected a {bool}. Got value: {value}')
        return value


def shipped_configs() -> dict[str, Path]:
    """The files of captioner/configs by name, such as recurrence/gru1."""
    files = sorted(SHIPPED_CONFIGS.rglob("*.yaml"))
    return {file.relative_to(SHIPPED_CONFIGS).with_suffix("").as_posix(): file for file in files}


def resolve_config(given: str) -> str:
    """The file of ``--config``: a path that exists, or one of captioner/configs by name, such as recurrence/gru1.

    UserError if there is neither; text that is YAML itself is returned as it is.
    """
    if (os.path.exists(given) and not os.path.isdir(given)) or re.search(r"\{|:\s", given):
        return given
    names = shipped_configs()
    if given in names:
        return str(names[given])
    last = {Path(name).name: name for name in names}
    close = get_close_matches(Path(given).stem, last, 1, 0.7)
    known = ", ".join(name for name in names if "/" not in name)
    advice = f"did you mean {last[close[0]]}?" if close else f"expected a path, or one of {known}"
    what = f"{given} is neither a file nor the name of a config" if given.strip() else "is empty"
    raise UserError(f"--config {what}: {advice}")


class ConfigFile(ActionConfigFile):
    """``--config``, for :func:`resolve_config`."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        file = resolve_config(values)
        parser.open_config(file)
        super().__call__(parser, namespace, file, option_string)
        parser.config = None


class Help(DefaultHelpFormatter):
    """Help of at most 100 columns, with paragraphs and defaults, without types and long metavars."""

    def __init__(self, prog: str, **more: Any) -> None:
        columns = min(100, shutil.get_terminal_size().columns)
        super().__init__(prog, **{**more, "width": columns - 2, "max_help_position": 31})

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        paragraphs = [" ".join(part.split()) for part in text.strip().split("\n\n")]
        wrapper = textwrap.TextWrapper(width, break_long_words=False, break_on_hyphens=False)  # names stay whole
        return "\n\n".join(wrapper.fill(part) for part in paragraphs)

    def _format_action_invocation(self, action: Action) -> str:
        shown = copy.copy(action)  # without --name+ of a list, which help of the option explains
        shown.option_strings = [option for option in action.option_strings if not option.endswith("+")]
        return super()._format_action_invocation(shown)

    def _get_default_metavar_for_optional(self, action: Action) -> str:
        return "…"

    def _format_args(self, action: Action, default_metavar: str) -> str:
        if action.nargs == ONE_OR_MORE:
            return f"{self._metavar_formatter(action, default_metavar)(1)[0]} …"
        return super()._format_args(action, default_metavar)

    def _get_type_str(self, action: Action) -> None:
        return None

    def _get_help_string(self, action: Action) -> str:
        text, default = super()._get_help_string(action), " (default: %(default)s)"
        if isinstance(action, Flag):
            return text.replace(default, " (default: on)" if action.default else "")
        if isinstance(action.default, list):
            return text.replace(default, f" (default: {' '.join(map(str, action.default))})")
        return text.replace(default, "") if action.default in (None, "") else text


class Parser(ArgumentParser):
    """The parser of one command, a module of :mod:`captioner.cli`; its errors are one line.

    A module with many options names in ``MAIN`` those that ``--help`` explains; ``--help all`` explains all. Its
    function ``base(options)`` returns other defaults, by group, that depend on the options.
    """

    config: str | None = None  # a file, while it is parsed
    config_of_run: Path | None = None  # while it is parsed

    def __init__(self, name: str) -> None:
        self.places: dict[str, tuple[str, int]] = {}  # the file and line of each option in a config
        self.typed: set[str] = set()
        self.command: Any = importlib.import_module(f"captioner.cli.{name.replace(' ', '_')}")
        super().__init__(prog=f"captioner {name}", description=self.command.__doc__, formatter_class=Help)
        self.command.configure(self)

    def add_argument(self, *names: Any, **options: Any) -> Any:
        """Declare an option; one of type bool is a :class:`Flag`. jsonargparse copies this method to groups."""
        if options.get("type") is bool:
            del options["type"]
            options["action"] = Flag
        return super().add_argument(*names, **options)

    def parse(self, arguments: list[str]) -> Any:
        """The options, their groups as dataclasses; SystemExit if one is wrong (code 2) or for --print_config."""
        for typed, following in pairwise([*arguments, ""]):
            option, equals, _ = typed.partition("=")
            flag = self._option_string_actions.get(option)
            self.typed |= {flag.dest} if flag else set()
            if isinstance(flag, Flag) and (equals or following.lower() in ("true", "false", "yes", "no", "on", "off")):
                self.error(f"{option} takes no value: type {' or '.join(flag.option_strings)}")
        options = self._parse_on_base(arguments)
        for group in {action.dest.partition(".")[0] for action in self._actions if "." in action.dest}:
            if not isinstance(options[group], Namespace):
                what = f"{group} is {options[group]}: expected its options, indented, a line each"
                raise UserError(f"{self.place(group) or '--config: '}{what}")
        return self.instantiate(options)

    def open_config(self, file: str) -> None:
        """Check a config, and remember the places of its options; text that is YAML itself is left to the parser."""
        if not os.path.exists(file):
            return
        self.config = file
        try:
            lines = check_yaml(Path(file).read_text(encoding="utf-8"))
        except UnicodeDecodeError as error:
            self.error(f"byte {error.start} is not UTF-8 text: save it as UTF-8")
        except (yaml.YAMLError, ValueError) as error:
            self.error(str(error))
        self.places |= {name: (file, line) for name, line in lines.items()}

    def place(self, name: str) -> str:
        """``mine.yaml: line 3: `` of an option that a config has, unless it was typed, too; else nothing."""
        if name in self.typed or name not in self.places:
            return ""
        file, line = self.places[name]
        return f"{file}: line {line}: "

    def _parse_on_base(self, arguments: list[str]) -> Namespace:
        """The options; those that are not given are those of a run that is resumed, or of the command's ``base``.

        ``options.given`` are the names of those that were typed, or are in a config.
        """
        if "--resume" not in self._option_string_actions:
            return self._parse(arguments)
        shown = [argument for argument in arguments if not argument.startswith("--print_config")]
        options, given = self._parse(shown), arguments
        config = Path(options.output, "config.yaml")
        if options.resume and config.is_file():
            given = arguments = ["--config", str(config), *arguments]
            self.config_of_run = config
        elif base := getattr(self.command, "base", None):
            arguments = ["--config", yaml.safe_dump(base(options)), *arguments]
        options = self._parse(arguments)
        options.given = frozenset(self._parse(given, defaults=False).keys())
        self.config_of_run = None
        return options

    def _parse(self, arguments: list[str], defaults: bool = True) -> Namespace:
        """The options; UserError for an empty text where it is no default: an empty path is a mistake."""
        options = self.parse_args(arguments, defaults=defaults)
        for action in self._actions:
            value = options.get(action.dest)
            texts = value if isinstance(value, list) else [value]
            if action.default != "" and any(isinstance(text, str) and not text.strip() for text in texts):
                raise UserError(
                    f"{self.place(action.dest)}{self.shown(action.dest)} is empty: name one, or leave it out"
                )
        return options

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print one line on stderr and exit with code 2; messages of jsonargparse are reworded for the command line."""
        text, name = self._reworded(" ".join(message.split()).replace("Problems parsing config:", "--config:"))
        text = printable(text if len(text) < MAX_MESSAGE else f"{text[:MAX_MESSAGE]} …")
        if self.config or text.startswith("--config: "):
            found = [place for key, place in self.places.items() if f".{key}".endswith(f".{name}")]
            file, line = found[-1] if found else (self.config, 0)
            text = f"line {line}: " * bool(found) + text.removeprefix("--config: ")
            if self.config_of_run:
                raise UserError(f"{self.config_of_run} is not the config of a run ({text}): put back a copy")
            text = f"{printable(file or '--config')}: {text}"
        print(f"{self.prog}: error: {text} (see {self.prog} --help)", file=sys.stderr)
        sys.exit(2)

    def _reworded(self, text: str) -> tuple[str, str]:
        """A message of jsonargparse in words of the command line, and the name of the option that it is about."""
        if found := re.match(r'Parser key "(.+?)": Unable to load config .(.*?). - Parser', text):
            advice = f"expected its options one by one, such as --{found[1]}.NAME VALUE"
            return f"--{found[1]} is {found[2]}: {advice}", found[1]
        if found := re.match(r'Parser key "(.+?)"(?: element \d+)?: (.+)', text):
            return f"{self.shown(found[1])}{_reason(found[2])}", found[1]
        if found := re.match(r"the following arguments are required: (.+)", text):
            return f"{' and '.join(map(self.shown, found[1].split(', ')))} needed", ""
        if found := re.match(r"unrecognized arguments: (\S+)", text):
            return self._unknown(found[1]), ""
        if found := re.match(r"(?:Group '(.+)' does not accept option|Option) '(.+?)'", text):
            name = f"{found[1]}.{found[2]}" if found[1] else found[2]
            return f"--config: {self._unknown(f'--{name}')}", name
        if found := re.match(r"argument (?:\S+/)?(--[\w.]+?)\+?: expected (?:one|at least one) argument", text):
            return f"{found[1]} needs a value", ""
        if "for --print_config" in text:
            return "--print_config takes no value: leave it out", ""
        if found := re.match(r"ambiguous option: (\S+) could match (.+)", text):
            return f"there is no option {found[1]}: did you mean {found[2].replace(', ', ' or ')}?", ""
        return _config_error(text)

    def help_page(self, everything: bool) -> str:
        """The help of all options, or of the main ones."""
        options = [action for action in self._actions if action.option_strings]
        required = [f"{each.option_strings[0]} …" for each in options if each.required]
        words = [action for action in self._actions if not action.option_strings]
        positional = [f"{each.metavar or each.dest}{' …' * (each.nargs == ONE_OR_MORE)}" for each in words]
        self.usage = " ".join([self.prog, *positional, *required, "[options]"])
        main = getattr(self.command, "MAIN", "").split()
        if main and not everything:
            rest = [each for each in options if each.dest not in (*main, "help") and each.help != SUPPRESS]
            names = [f"--{each.dest.split('.')[0]}{'.…' if '.' in each.dest else ''}" for each in rest]
            names = [name for name in dict.fromkeys(names) if f"{name}.…" not in names]
            self.epilog = f"{self.prog} --help all explains {len(rest)} more: {', '.join(names)}."
            for each in rest:
                each.help = SUPPRESS
        return self.format_help()

    def shown(self, dest: str) -> str:
        """``--length_norm`` for length_norm, ``IMAGE`` for the positional images."""
        metavars = {each.dest: str(each.metavar or dest) for each in self._actions if not each.option_strings}
        shown = metavars.get(dest, f"--{dest}")
        return dest if shown.startswith("{") else shown  # {one,of,these}

    def _unknown(self, typed: str) -> str:
        """The message for an argument that the command does not have."""
        if not typed.startswith("-"):
            return f"{typed} is one argument too many"
        options: dict[str, list[str]] = {}  # by name, with and without its group
        for option in self._option_string_actions:
            if option.startswith("--") and not option.endswith("+"):
                for key in {option[2:], option[2:].rpartition(".")[2]}:
                    options.setdefault(key, []).append(option)
        name = typed.lstrip("-")
        last = name.rpartition(".")[2]
        begun = [key for key in options if len(last) > 2 and key.startswith(last)]
        close = [*get_close_matches(name, options, 1), *get_close_matches(last, options, 1)]
        close = [*ELSEWHERE.get(last, "").split(), *begun, *close]
        found = next((options[key] for key in (name, last, *close) if key in options), [])
        return f"there is no option {typed}" + (f": did you mean {' or '.join(found[:2])}?" if found else "")


def no_command(name: str) -> str:
    """The message for a command that there is not, with the nearest one."""
    if name.startswith("-"):
        return f"there is no option {name}{did_you_mean(name, ['--help', '--version'])}"
    last = {command.rpartition(" ")[2]: command for command in COMMANDS}  # fetch for data fetch
    word = name.rpartition(" ")[2]
    begun = [key for key in last if len(word) > 2 and key.startswith(word)]
    close = [ELSEWHERE.get(name), *(last.get(key) for key in (*begun, *get_close_matches(word, last, 1)))]
    if found := next((command for command in close if command in COMMANDS), None):
        return f"there is no command {name!r}: did you mean {found}?"
    mine = [command for command in COMMANDS if command.startswith(f"{name} ")]
    return f"there is no command {name!r}: expected one of {', '.join(mine or COMMANDS)}"


def _config_error(text: str) -> tuple[str, str]:
    """What jsonargparse says of a whole config, in words of the command line, and the key that it is about."""
    if found := re.match(r"Unexpected config: ?(.*)", text):
        return f"--config: expected NAME: VALUE on its lines, and found {found[1] or 'nothing'}", ""
    if found := re.match(r"Key must be a string, got: (.*)\.", text):
        return f"--config: {found[1]} is not the name of an option", found[1]
    if found := re.match(r'Spaces not allowed in keys: "(.*)"\.', text):
        return f"--config: {found[1]!r} is not the name of an option: write NAME: VALUE", found[1]
    return text, ""


def _reason(text: str) -> str:
    """`` is three: expected a whole number`` for ``Expected a <class 'int'>. Got value: three``."""
    if found := re.match(r"Expected an? (.+?)\. Got value:(.*)", text):
        kinds, value = [found[1]], found[2].strip()
    elif found := re.match(r"Does not validate.* Subtypes: \[(.+?)\] .*Given value:(.*)", text):
        kinds, value = found[1].replace("list[str]", "list").split(", "), found[2].strip()
    else:
        return f": {text}"
    choices = [choice for kind in kinds for choice in _choices(kind)]
    mine = next((each for each in ELSEWHERE.get(value, "").split() if each in choices), value)
    near = did_you_mean(mine, choices)
    return f" is {value or 'empty'}: expected {' or '.join(sorted(map(_kind, kinds)))}{near}"  # kinds in no fixed order


def _choices(annotation: str) -> list[str]:
    """The values of a Literal; none of another type."""
    found = re.fullmatch(r"typing\.Literal\[(.+)\]", annotation)
    return found[1].replace("'", "").split(", ") if found else []


def _kind(annotation: str) -> str:
    """``a whole number`` for ``<class 'int'>``."""
    if choices := _choices(annotation):
        return f"one of {', '.join(choices)}"
    names = {"float": "a number", "int": "a whole number", "bool": "true or false", "str": "text", "NoneType": "null"}
    names["list"] = "a list"
    name = annotation.removeprefix("<class '").removesuffix("'>")
    return names.get(name, name)
