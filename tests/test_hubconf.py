"""torch.hub.load of a clone."""

import subprocess
import sys

import pytest
from helpers import ROOT

LOAD = """
import sys, torch
model = torch.hub.load(sys.argv[1], "captioner", source="local", **eval(sys.argv[2]))
print(type(model).__name__, model.training)
print(model.caption(sys.argv[3]))
foreign = {name.split(".")[0] for name in sys.modules if getattr(sys.modules[name], "__spec__", None)}
print(*sorted(foreign))
"""


def hub(folder, **options) -> list[str]:
    """What LOAD prints in a process of another folder."""
    photo = ROOT / "data" / "photos" / "cameraman.jpg"
    command = [sys.executable, "-c", LOAD, str(ROOT), repr(options), str(photo)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_the_shipped_model(tmp_path):
    kind, caption, modules = hub(tmp_path)
    assert kind == "Captioner False"
    assert "tripod" in caption
    assert set(dependencies()) <= set(modules.split())


@pytest.mark.slow
def test_another_model(tmp_path, run):
    kind, caption, _ = hub(tmp_path, checkpoint=str(run / "best.ckpt"), device="cpu")
    assert kind == "Captioner False"
    assert caption


def dependencies() -> list[str]:
    """Those that hubconf.py names: each is loaded to caption an image."""
    names = {}
    exec((ROOT / "hubconf.py").read_text(encoding="utf-8"), names)
    return names["dependencies"]
