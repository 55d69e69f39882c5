"""Names of files are checked at once: before torch is imported, and without creating anything."""

import json
import os
import subprocess
import sys

import pytest
from helpers import ROOT, is_one_line

from captioner.errors import UserError
from captioner.files import check_creatable

# A command, run where file.txt is all that there is, and what it is refused for.
REFUSED = [
    ("predict missing.jpg", "missing.jpg: no such file; check the path"),
    ("predict missing.jpg nowhere/*.png @list.txt", "missing.jpg: no such file"),
    ("predict nowhere/*.png", "nowhere/*.png: no such file"),
    ("predict @list.txt", "@list.txt: no such file"),
    ("predict file.txt --checkpoint missing.ckpt", "no checkpoint missing.ckpt"),
    ("predict file.txt --output file.txt/captions.txt", "--output file.txt/captions.txt: cannot be written"),
    ("predict file.txt --report new/folder/../../file.txt/page.html", "--report"),
    ("predict file.txt --batch_size 0", "--batch_size is 0"),
    ("predict file.txt --workers -2", "--workers is -2"),
    ("predict file.txt --n_best 9", "n_best is 9"),
    ("evaluate --annotations missing.json", "missing.json: no such file"),
    ("evaluate --annotations file.txt --images nowhere", "nowhere: no such file"),
    ("evaluate --annotations file.txt --compare_checkpoint none.ckpt", "no checkpoint none.ckpt"),
    ("evaluate --annotations file.txt --json file.txt/a.json", "--json file.txt/a.json: cannot be written"),
    ("train", "--data.train (captions) is needed"),
    ("train --data.train missing.json", "missing.json: no such file"),
    ("train --data.train file.txt --data.train+ missing.json", "missing.json: no such file"),
    ("train --data.train file.txt --data.val shards-{0..9}.tar --data.val_images nowhere", "nowhere: no such file"),
    ("train --data.train file.txt --data.val file.txt --output file.txt/run", "--output file.txt/run"),
    ("train --init_from none.ckpt", "no checkpoint none.ckpt"),
    ("pretrain", "--data.text"),
    ("pretrain --data.text missing.txt", "missing.txt: no such file"),
    ("serve --checkpoint none.ckpt", "no checkpoint none.ckpt"),
    ("serve --port 99999", "99999 is not available"),
    ("demo --checkpoint none.ckpt", "no checkpoint none.ckpt"),
    ("score --annotations missing.json --results file.txt", "missing.json: no such file"),
    ("score --annotations file.txt --results missing.json", "missing.json: no such file"),
    ("export --to onnx --output file.txt/out", "--output file.txt/out: cannot be written"),
    ("export --to onnx --output out --push me/mine", "--push has no effect without --to hf"),
    ("average none.ckpt other.ckpt --output a.safetensors", "no checkpoint none.ckpt"),
    ("gradients --annotations missing.json --images .", "missing.json: no such file"),
    ("data inspect missing.json", "missing.json: no such file"),
    ("data inspect file.txt --val missing.json", "missing.json: no such file"),
    ("data convert missing.json --to coco --output out", "missing.json: no such file"),
]
CODE = """
import contextlib, io, json, sys
from captioner.__main__ import main
for command in json.loads(sys.argv[1]):
    with contextlib.redirect_stderr(io.StringIO()) as error:
        try:
            code = main(command.split())
        except SystemExit as stopped:
            code = stopped.code
    print(json.dumps([code, error.getvalue(), "torch" in sys.modules]))
"""


def test_names_are_checked_before_torch_is_imported(tmp_path):
    (tmp_path / "file.txt").write_text("a file")
    commands = json.dumps([command for command, _ in REFUSED])
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", CODE, commands], capture_output=True, text=True, cwd=tmp_path, env=environment
    )
    answers = list(map(json.loads, done.stdout.splitlines()))
    for (command, says), (code, error, torch) in zip(REFUSED, answers, strict=True):
        assert (code, torch) == (2, False), command
        assert is_one_line(error, says), (command, error)
    assert [path.name for path in tmp_path.iterdir()] == ["file.txt"]


def test_places_that_can_be_written(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path)
    for path in ("file", "new", "new/deep/file", ".", "link/new"):
        check_creatable(str(tmp_path / path), "it")
    assert {path.name for path in tmp_path.iterdir()} == {"file", "link"}


def test_folders_without_permission(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path)
    for path in (tmp_path, tmp_path / "new", tmp_path / "new" / "file"):
        with pytest.raises(UserError, match=r"^--output x: cannot be written: no permission to write to"):
            check_creatable(str(path), "--output x")
