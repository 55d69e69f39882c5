"""How messages name numbers and a missing extra."""

import pytest
from helpers import ROOT

from captioner import errors
from captioner.errors import REPOSITORY, counted, decimals, install_hint


@pytest.mark.parametrize(
    ("number", "noun", "said"), [(1, "batch", "1 batch"), (0, "epoch", "0 epochs"), (2000, "box", "2,000 boxes")]
)
def test_a_noun_is_in_the_plural_unless_there_is_one(number, noun, said):
    assert counted(number, noun) == said


@pytest.mark.parametrize("value", [-1e-9, -0.0, 0, -0.0049, 0.0049])
def test_a_zero_has_no_sign(value):
    assert decimals(value) == decimals(value, "+.2f") == "0.00"
    assert (decimals(-0.006), decimals(0.006, "+.2f")) == ("-0.01", "+0.01")


def test_the_extra_of_a_clone_and_of_an_installed_package(tmp_path, monkeypatch):
    assert REPOSITORY == ROOT
    monkeypatch.chdir(ROOT)
    assert install_hint("hub,parquet") == "pip install -e '.[hub,parquet]'"
    monkeypatch.chdir(tmp_path)
    assert install_hint("demo") == f"pip install -e '{ROOT}[demo]'"
    monkeypatch.setattr(errors, "REPOSITORY", None)
    assert install_hint("demo") == "pip install 'captioner[demo]'"
