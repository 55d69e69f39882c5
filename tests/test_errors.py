"""How a message says that an extra is missing."""

from helpers import ROOT

from captioner import errors
from captioner.errors import REPOSITORY, install_hint


def test_the_extra_of_a_clone_and_of_an_installed_package(tmp_path, monkeypatch):
    assert REPOSITORY == ROOT
    monkeypatch.chdir(ROOT)
    assert install_hint("hub,parquet") == "pip install -e '.[hub,parquet]'"
    monkeypatch.chdir(tmp_path)
    assert install_hint("demo") == f"pip install -e '{ROOT}[demo]'"
    monkeypatch.setattr(errors, "REPOSITORY", None)
    assert install_hint("demo") == "pip install 'captioner[demo]'"
