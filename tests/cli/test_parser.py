"""Help that fits a screen, and what a shell completes."""

import re
import shlex
import subprocess
import sys
from operator import attrgetter

import pytest
import yaml
from helpers import ROOT, is_one_line

from captioner.__main__ import _with_underscores, main
from captioner.cli.parser import COMMANDS, Flag, Parser


@pytest.mark.parametrize("name", COMMANDS)
def test_help_fits_a_screen(cli, monkeypatch, name):
    monkeypatch.setenv("COLUMNS", "200")
    code, out, err = cli(*name.split(), "--help")
    assert (code, err) == (0, "")
    assert out.startswith(f"usage: captioner {name}")
    assert f"Example: captioner {name} " in " ".join(out.split())
    lines = out.splitlines()
    assert len(lines) <= 40
    assert max(map(len, lines)) <= 100
    assert cli(*name.split(), "-h")[1] == out


def test_the_help_of_train_fits_a_small_screen(cli, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    lines = cli("train", "--help")[1].splitlines()
    assert len(lines) <= 40
    assert max(map(len, lines)) <= 80


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_is_explained_somewhere(cli, name):
    """By --help, or by the --help all that it points to."""
    parser = Parser(name)
    declared = {option for action in parser._actions for option in action.option_strings}
    chosen = getattr(parser.command, "MAIN", "").split()
    assert {f"--{dest}" for dest in chosen} <= declared
    short, whole = (cli(*name.split(), "--help", *more)[1] for more in ([], ["all"]))
    shown = {
        option for option in declared if re.search(rf"^  (-h, |--\S+, )?{re.escape(option)}\b", whole, re.MULTILINE)
    }
    lists = {option for option in declared if option.endswith("+")}
    assert declared - shown - lists <= {"-h", "--print_config", "--print_shtab"}
    assert (f"{name} --help all" in " ".join(short.split())) == bool(chosen)


@pytest.mark.parametrize("name", COMMANDS)
def test_the_example_parses(monkeypatch, name):
    start, command = "Example: captioner ", Parser(name).command
    (example,) = (part for part in command.__doc__.split("\n\n") if part.startswith(start))
    line = re.split(", then: | > ", example.removeprefix(start))[0]
    assert line.startswith(name)
    ran = []
    monkeypatch.setattr(command, "run", ran.append)
    monkeypatch.setattr("captioner.__main__.check_names", lambda *_: None)  # the files are the reader's
    monkeypatch.chdir(ROOT)
    assert main(shlex.split(line)) == 0
    assert len(ran) == 1


def test_no_types_and_no_empty_defaults(cli):
    out = cli("train", "--help", "all")[1]
    assert "(type:" not in out
    assert "null" not in out
    assert "(default: lstm)" in out


# ---- booleans


@pytest.mark.parametrize(
    ("command", "typed", "key", "value"),
    [
        ("train", "--data.horizontal_flip", "data.horizontal_flip", True),
        ("train", "--data.no-horizontal-flip", "data.horizontal_flip", False),
        ("train", "--data.horizontal_flip --data.no_horizontal_flip", "data.horizontal_flip", False),
        ("train", "--search.no_bad_ending", "search.no_bad_ending", True),
        ("train", "--search.no_bad_ending --search.bad-ending", "search.no_bad_ending", False),
        ("pretrain", "--data.no_lines", "data.lines", False),
        ("predict a.png", "--no-repeat-word", "no_repeat_word", True),
        ("predict a.png", "--no-repeat-word --repeat_word", "no_repeat_word", False),
    ],
)
def test_a_boolean_is_a_pair_of_options(command, typed, key, value):
    name, *words = command.split()
    options = Parser(name).parse([*words, *map(_with_underscores, typed.split())])
    assert attrgetter(key)(options) is value


@pytest.mark.parametrize("name", COMMANDS)
def test_every_boolean_is_a_pair_of_options(name):
    for action in Parser(name)._actions:
        if isinstance(action.default, bool) or action.nargs == 0:
            assert isinstance(action, Flag) or action.dest in ("help", "print_config")
        if isinstance(action, Flag):
            one, other = (option.replace("no_", "", 1) for option in action.option_strings)
            assert one == other


def test_a_boolean_in_a_config_file_is_true_or_false(cli, tmp_path):
    file = tmp_path / "config.yaml"
    for text, value in (("true", True), ("false", False)):
        file.write_text(f"data: {{horizontal_flip: {text}}}")
        code, out, _ = cli("train", "--config", file, "--print_config")
        assert code == 0
        assert yaml.safe_load(out)["data"]["horizontal_flip"] is value
    file.write_text("data: {horizontal_flip: maybe}")
    assert is_one_line(cli("train", "--config", file)[2], "--data.horizontal_flip is maybe: expected true or false")


# ---- completion


@pytest.fixture(scope="module")
def complete(tmp_path_factory):
    """What bash offers for the last of the words."""
    pytest.importorskip("shtab", reason="pip install -e '.[completion]'")
    script = tmp_path_factory.mktemp("completion") / "captioner"
    with script.open("w") as file:
        subprocess.run([sys.executable, "-m", "captioner", "completion", "bash"], stdout=file, check=True)

    def call(*words):
        code = 'source "$1"; shift; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _shtab_captioner; echo "${COMPREPLY[*]}"'
        command = ["bash", "-c", code, "-", script, "captioner", *words]
        return sorted(subprocess.check_output(command, cwd=ROOT, text=True).split())

    return call


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["ev"], ["evaluate"]),
        (["data", ""], ["fetch", "inspect", "convert"]),
        (["predict", "--be"], ["--beam"]),
        (["predict", "--length_norm", ""], ["gnmt", "average"]),
        (["train", "--model.cell", ""], ["rnn", "gru", "lstm"]),
        (["train", "--data.val_i"], ["--data.val_images", "--data.val_images+"]),
        (["train", "--config", "setup"], ["setup.cfg"]),
        (["train", "--config", "coco_"], ["coco_attention", "coco_lstm", "coco_scst"]),
        (["pretrain", "--config", "recurrence/gru1"], ["recurrence/gru1"]),
        (["train", "--init_from", "ship"], ["shipped"]),
        (["train", "--data.vocabulary", "ex"], ["extend"]),
        (["predict", "READ"], ["README.md"]),
        (["predict", "a.jpg", "--no_s"], ["--no_sample"]),
        (["train", "--data.no_h"], ["--data.no_horizontal_flip"]),
        (["data", "convert", "here", "--to", ""], ["coco", "webdataset"]),
        (["data", "fetch", "coco"], ["coco2014", "coco2017"]),
    ],
    ids=" ".join,
)
def test_bash_completes(complete, words, offered):
    assert complete(*words) == sorted(offered)


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_have_a_script(cli, shell):
    """They are not run: neither shell is among what the tests may ask for."""
    pytest.importorskip("shtab", reason="pip install -e '.[completion]'")
    code, out, err = cli("completion", shell)
    assert (code, err) == (0, "")
    assert "length_norm" in out
