"""The README and the docs: their commands parse, the files they link exist, and, when slow, the commands run."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import captioner.__main__ as cli

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = {page.relative_to(ROOT / "docs").as_posix(): page for page in sorted((ROOT / "docs").rglob("*.md"))}
DOCS = {name: page.read_text(encoding="utf-8") for name, page in PAGES.items()}


def commands(page: str = README) -> list[str]:
    """The command lines of a page's blocks, continuation lines joined, comments dropped."""
    blocks = re.findall(r"```bash\n(.*?)```", page, flags=re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [re.split(r"\s+#", line)[0].strip() for line in lines if line.strip() and not line.startswith("#")]


def captioner_arguments(line: str) -> list[str] | None:
    """The arguments after ``captioner`` if the line is one of its commands."""
    words = shlex.split(line)
    if words[0] == "captioner":
        return words[1:]
    if words[:2] in (["python", "train.py"], ["python", "predict.py"]):
        return [words[1].removesuffix(".py"), *words[2:]]
    return None


def documented() -> list:
    """The complete commands of the README, and, slowly, of the pages of docs/."""
    lines = [line for line in commands() if captioner_arguments(line)]
    more = {line: None for page in DOCS.values() for line in commands(page) if not re.search(r"…|\$", line)}
    slow = [line for line in more if captioner_arguments(line) and line not in lines]
    return [*lines, *(pytest.param(line, marks=pytest.mark.slow) for line in slow)]


@pytest.mark.parametrize("line", documented())
def test_every_command_parses(line, monkeypatch):
    arguments = captioner_arguments(line.replace("runs/mine/config.yaml", "flickr8k"))
    words = 2 if arguments[0] == "data" else 1  # of the command
    ran = []
    module = __import__(f"captioner.cli.{'_'.join(arguments[:words])}", fromlist=["run"])
    monkeypatch.setattr(module, "run", lambda options: ran.append(options))
    monkeypatch.setattr(cli, "check_names", lambda *_: None)  # the files are the reader's
    monkeypatch.setattr(module, "base", lambda options: {}, raising=False)  # also the checkpoint of --init-from
    monkeypatch.chdir(ROOT)
    assert cli.main(arguments) == 0
    assert ran


def test_every_other_command_is_known():
    others = {shlex.split(line)[0] for line in commands() if not captioner_arguments(line)}
    assert others <= {"make", "git", "cd", "pip", "python", "tensorboard"}


def test_every_linked_file_exists():
    links = re.findall(r"\]\(([^)#]+)\)", README)
    missing = [link for link in links if "://" not in link and not (ROOT / link).exists()]
    assert links
    assert not missing


@pytest.mark.parametrize("page", DOCS)
def test_every_link_of_the_docs_exists(page):
    links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", DOCS[page])
    assert [link for link in links if "://" not in link and not (PAGES[page].parent / link).exists()] == []


@pytest.mark.parametrize("page", ["README.md", *DOCS])
def test_links_read_well(page):
    """A link says what it leads to: no "here", and no name of a page, which has a title."""
    texts = re.findall(r"\[([^\]]+)\]\([^)]+\)", DOCS.get(page, README))
    assert [text for text in texts if re.fullmatch(r"(?i)here|this|this page|link|\S*\.(md|ipynb)", text)] == []


@pytest.mark.parametrize("page", ["README.md", *DOCS])
def test_the_gallery_has_its_caveat(page):
    after = re.split(r"!\[[^\]]*\]\([^)]*gallery\.png\)", DOCS.get(page, README))[1:]
    assert all("ight and wrong ones are shown as they come" in " ".join(text[:400].split()) for text in after)


def test_every_package_has_an_api_page():
    packages = {folder.parent.name for folder in (ROOT / "captioner").glob("*/__init__.py")} - {"cli"}
    assert packages <= {name.removeprefix("api/").removesuffix(".md") for name in DOCS if name.startswith("api/")}
    assert all(f"::: captioner.{name}\n" in DOCS[f"api/{name}.md"] for name in packages)


def test_the_python_of_the_tutorial_runs():
    blocks = re.findall(r"```python\n(.*?)```", DOCS["tutorial.md"], re.DOTALL)
    assert blocks
    exec("\n".join(blocks), {})


@pytest.mark.slow
def test_the_site_is_built_without_a_warning(tmp_path):
    pytest.importorskip("mkdocs", reason="pip install -e '.[docs]'")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "site" / "tutorial" / "index.html").is_file()


@pytest.mark.slow
def test_the_python_of_the_readme_runs():
    for block in re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL):
        done = subprocess.run([sys.executable, "-c", block], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, f"{block}\n{done.stderr}"
        assert done.stdout.strip()


@pytest.mark.slow
def test_commands_on_shipped_data_run(tmp_path):
    """The commands on data/photos and data/shapes, which need nothing but the repository."""
    for name in ("data/photos",):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        os.symlink(ROOT / name, tmp_path / name)
    pages = README, DOCS["index.md"]
    lines = [line for page in pages for line in commands(page) if re.search(r"shapes|data/photos", line)]
    lines = [line for line in lines if captioner_arguments(line)]
    assert lines
    for line in lines:
        arguments = captioner_arguments(line)
        done = subprocess.run(
            [sys.executable, "-m", "captioner", *arguments], cwd=tmp_path, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{line}\n{done.stderr}"
