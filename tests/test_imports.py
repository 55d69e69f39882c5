"""Imports point one way, the same Lightning everywhere, and what is heavy is imported where it is used."""

import ast
import subprocess
import sys

import pytest
from conftest import ROOT

# A module imports from its own row's earlier entries and from the rows above it.
ROWS = [
    ["errors", "config", "parts"],
    [
        "vocabulary",
        "mirror",
        "files",
        "shards",
        "images",
        "inputs",
        "layouts",
        "formats",
        "text",
        "clips",
        "features",
        "dataset",
        "duplicates",
        "conversion",
        "shapes",
        "download",
        "fetch",
    ],
    ["backbones", "encoder", "decoder", "attention", "sequence", "rules", "search"],
    ["captions", "model", "transfer", "language", "soup"],
    ["ptb", "metrics", "significance", "rewards", "datamodule", "task", "callbacks", "health", "check", "pretraining"],
    [
        "external",
        "results",
        "gradients",
        "curves",
        "export",
        "runner",
        "gallery",
        "evaluation",
        "inspection",
        "report",
        "demo",
        "engines",
        "ddp",
        "actors",
    ],
    ["fetching", "server"],
    ["parsing", "commands", "__main__"],
]
LEVEL = {name: (level, place) for level, row in enumerate(ROWS) for place, name in enumerate(row)}
PACKAGE = ROOT / "captioner"
FILES = sorted(PACKAGE.rglob("*.py"))


def imports(file, everywhere: bool = True) -> set[str]:
    """Full names a file imports; without `everywhere`, only those of the module itself, outside functions and
    ``if TYPE_CHECKING``."""
    found = set()

    def look(nodes):
        for node in nodes:
            if isinstance(node, ast.Import):
                found.update(alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{file}: imports are absolute"
                found.update(f"{node.module}.{alias.name}" for alias in node.names)
            elif not everywhere and (
                isinstance(node, ast.FunctionDef)
                or (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test))
            ):
                continue
            else:
                look(ast.iter_child_nodes(node))

    look(ast.parse(file.read_text(encoding="utf-8")).body)
    return found


def module(file) -> str:
    return ".".join(("captioner", *file.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__")


def own(names: set[str]) -> set[str]:
    """The modules of captioner among names such as captioner.encoder.Encoder."""
    modules = {module(file) for file in FILES}
    return {
        next(".".join(parts[:n]) for n in range(len(parts), 0, -1) if ".".join(parts[:n]) in modules)
        for parts in (name.split(".") for name in names)
        if parts[0] == "captioner"
    }


def is_script(file) -> bool:
    return file.parent == PACKAGE and file.stem == "__init__"


def test_every_module_has_its_row():
    stems = {file.stem for file in PACKAGE.glob("*.py")} - {"__init__"} | {"commands"}
    assert stems == set(LEVEL)


@pytest.mark.parametrize("file", [file for file in FILES if not is_script(file)], ids=module)
def test_imports_point_one_way(file):
    me = module(file)
    for other in own(imports(file)) - {"captioner"}:
        here, there = (LEVEL[name.split(".")[1]] for name in (me, other))
        if here == there:  # the commands
            shared = (
                "captioner.commands",
                *(f"captioner.commands.{name}" for name in ("evaluate", "predict", "train")),
            )
            assert other < me or other in shared, f"{me} imports {other}"
        else:
            assert there < here, f"{me} imports {other}"


def test_no_cycles():
    graph = {module(file): own(imports(file)) for file in FILES if not is_script(file)}
    done: set[str] = set()

    def visit(name, path):
        assert name not in path, " → ".join((*path, name))
        if name not in done:
            for other in graph.get(name, ()):
                visit(other, (*path, name))
            done.add(name)

    for name in graph:
        visit(name, ())


@pytest.mark.parametrize("file", [*FILES, ROOT / "train.py", ROOT / "predict.py"], ids=lambda file: file.stem)
def test_one_lightning_and_no_test_oracle(file):
    roots = {name.split(".")[0] for name in imports(file)}
    assert not roots & {"lightning", "pycocoevalcap", "pytest", "hypothesis"}
    assert not any(name.startswith("matplotlib") for name in imports(file, everywhere=False))
    assert "import lightning" not in file.read_text(encoding="utf-8")


@pytest.mark.parametrize("file", FILES, ids=module)
def test_every_module_and_public_name_has_a_docstring(file):
    tree = ast.parse(file.read_text(encoding="utf-8"))
    assert ast.get_docstring(tree), file
    for node in tree.body:
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and not node.name.startswith("_"):
            assert ast.get_docstring(node), node.name
            for inner in node.body if isinstance(node, ast.ClassDef) else ():
                if isinstance(inner, ast.FunctionDef) and not inner.name.startswith("_") and inner.name != "__init__":
                    known = inner.name in ("train", "forward", "error") or ast.get_docstring(inner)
                    assert known, f"{node.name}.{inner.name}"


def reached(name: str) -> set[str]:
    """All that importing a module and calling ``captioner predict`` imports by name, through captioner's modules."""
    files = {module(file): file for file in FILES}
    seen, found, todo = set(), set(), [name]
    while todo:
        current = todo.pop()
        if current not in seen:
            seen.add(current)
            names = imports(files[current], everywhere=current == name)
            found |= names
            todo += own(names)
    return found


def test_predict_never_reaches_lightning():
    found = reached("captioner.commands.predict")
    assert "captioner.model.load" in found
    assert not {name for name in found if name.startswith(("pytorch_lightning", "torchmetrics", "tensorboard"))}


@pytest.mark.parametrize(
    ("code", "absent"),
    [
        ("import captioner", {"torch", "numpy", "PIL"}),
        ("import captioner.model", {"pytorch_lightning", "tensorboard", "nltk"}),
        ("from captioner.__main__ import main; main(['--help'])", {"torch", "pytorch_lightning"}),
        (
            "from captioner.__main__ import main\ntry: main(['predict', '--help'])\nexcept SystemExit: pass",
            {"pytorch_lightning", "tensorboard", "pycocotools"},
        ),
    ],
    ids=["captioner", "captioner.model", "--help", "predict --help"],
)
def test_heavy_imports_wait_until_they_are_needed(code, absent):
    check = f"{code}\nimport sys\nprint(sorted({absent!r} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, cwd=ROOT, check=True)
    assert found.stdout.splitlines()[-1] == "[]"
