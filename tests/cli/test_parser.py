"""Help that fits a screen, and what a shell completes."""

import re
import shlex
import subprocess
import sys

import pytest
from conftest import ROOT

from captioner.__main__ import main
from captioner.cli.parser import COMMANDS, Parser


@pytest.mark.parametrize("name", COMMANDS)
def test_help_fits_a_screen(cli, monkeypatch, name):
    monkeypatch.setenv("COLUMNS", "200")
    code, out, err = cli(*name.split(), "--help")
    assert (code, err) == (0, "")
    assert out.startswith(f"usage: captioner {name}")
    assert f"Example: captioner {name} " in " ".join(out.split())
    lines = out.splitlines()
    assert len(lines) <= 50
    assert max(map(len, lines)) <= 100
    assert cli(*name.split(), "-h")[1] == out


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_is_explained_somewhere(cli, name):
    """By --help, or by the --help all that it points to."""
    parser = Parser(name)
    declared = {option for action in parser._actions for option in action.option_strings}
    chosen = getattr(parser.command, "MAIN", "").split()
    assert {f"--{dest}" for dest in chosen} <= declared
    short, whole = (cli(*name.split(), "--help", *more)[1] for more in ([], ["all"]))
    shown = {option for option in declared if re.search(rf"^  (-h, )?{re.escape(option)}\b", whole, re.MULTILINE)}
    assert declared - shown <= {"-h", "--print_config", "--print_shtab"}
    assert (f"{name} --help all" in " ".join(short.split())) == bool(chosen)


@pytest.mark.parametrize("name", COMMANDS)
def test_the_example_parses(monkeypatch, name):
    start, command = "Example: captioner ", Parser(name).command
    (example,) = (part for part in command.__doc__.split("\n\n") if part.startswith(start))
    line = re.split(", then: | > ", example.removeprefix(start))[0]
    assert line.startswith(name)
    ran = []
    monkeypatch.setattr(command, "run", ran.append)
    monkeypatch.chdir(ROOT)
    assert main(shlex.split(line)) == 0
    assert len(ran) == 1


def test_no_types_and_no_empty_defaults(cli):
    out = cli("train", "--help", "all")[1]
    assert "(type:" not in out
    assert "null" not in out
    assert "(default: lstm)" in out


# ---- completion


@pytest.fixture(scope="module")
def complete(tmp_path_factory):
    """What bash offers for the last of the words."""
    pytest.importorskip("shtab", reason="pip install 'captioner[completion]'")
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
        (["train", "--data.val_i"], ["--data.val_images"]),
        (["train", "--config", "setup"], ["setup.cfg"]),
        (["predict", "READ"], ["README.md"]),
        (["predict", "a.jpg", "--sample", ""], ["true", "false"]),
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
    pytest.importorskip("shtab", reason="pip install 'captioner[completion]'")
    code, out, err = cli("completion", shell)
    assert (code, err) == (0, "")
    assert "length_norm" in out
