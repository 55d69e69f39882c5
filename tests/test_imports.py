"""Packages import one way, one name for Lightning, and what is heavy is imported where it is used."""

import ast
import subprocess
import sys
from functools import cache

import pytest
from helpers import ROOT, arguments

# A package imports only from itself and from the packages above it.
PACKAGES = [
    "",  # captioner itself: config, errors, files
    "data",
    "datasets",
    "metrics",
    "decoding",
    "models",
    "training",
    "inference",
    "reports",
    "deploy",
    "cli",
]
SOURCE = ROOT / "captioner"
FILES = sorted(SOURCE.rglob("*.py"))
ENTRY = (SOURCE / "__init__.py", SOURCE / "__main__.py")  # these name what they start


def module_name(file) -> str:
    return ".".join(("captioner", *file.relative_to(SOURCE).with_suffix("").parts)).removesuffix(".__init__")


MODULES = {module_name(file): file for file in FILES}


@cache
def imported_names(file, inside_functions: bool = True) -> set[str]:
    """Full names that a file imports; without `inside_functions`, only those of the module's own level."""
    found = set()

    def collect(nodes):
        for node in nodes:
            if isinstance(node, ast.Import):
                found.update(alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{file}: imports are absolute"
                found.update(f"{node.module}.{alias.name}" for alias in node.names)
            elif not inside_functions and (
                isinstance(node, ast.FunctionDef)
                or (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test))
            ):
                continue
            else:
                collect(ast.iter_child_nodes(node))

    collect(ast.parse(file.read_text(encoding="utf-8")).body)
    return found


def own_modules(names: set[str]) -> set[str]:
    """The modules of captioner among names such as captioner.models.encoder.Encoder."""
    return {
        next(".".join(parts[:n]) for n in range(len(parts), 0, -1) if ".".join(parts[:n]) in MODULES)
        for parts in (name.split(".") for name in names)
        if parts[0] == "captioner"
    }


def package_of(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in PACKAGES else ""


def test_layout():
    """Eleven rows, and at most eight modules beside the packages."""
    assert {path.parent.name for path in SOURCE.glob("*/__init__.py")} == set(PACKAGES) - {""}
    assert len(list(SOURCE.glob("*.py"))) <= 8


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_imports_only_from_those_above_it(package):
    above = set(PACKAGES[: PACKAGES.index(package) + 1])
    for module, file in MODULES.items():
        if package_of(module) == package and file not in ENTRY:
            below = {other for other in own_modules(imported_names(file)) if package_of(other) not in above}
            assert not below, f"{module} imports {below}"


def test_no_cycles():
    graph = {module: own_modules(imported_names(file)) for module, file in MODULES.items() if file not in ENTRY}
    done: set[str] = set()

    def visit(name, path):
        assert name not in path, " → ".join((*path, name))
        if name not in done:
            for other in graph.get(name, ()):
                visit(other, (*path, name))
            done.add(name)

    for name in graph:
        visit(name, ())


def test_one_lightning_and_no_test_oracle():
    for file in [*FILES, ROOT / "train.py", ROOT / "predict.py"]:
        roots = {name.split(".")[0] for name in imported_names(file)}
        assert not roots & {"lightning", "pycocoevalcap", "pytest", "hypothesis"}, file
        assert not any(name.startswith("matplotlib") for name in imported_names(file, inside_functions=False)), file
        assert "import lightning" not in file.read_text(encoding="utf-8"), file


def test_every_module_and_public_name_has_a_docstring():
    for file in FILES:
        tree = ast.parse(file.read_text(encoding="utf-8"))
        assert ast.get_docstring(tree), file
        for node in tree.body:
            if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and not node.name.startswith("_"):
                assert ast.get_docstring(node), f"{file}: {node.name}"


def reached(name: str) -> set[str]:
    """All that importing a module and calling ``captioner predict`` imports by name, through captioner's modules."""
    seen, found, todo = set(), set(), [name]
    while todo:
        current = todo.pop()
        if current not in seen:
            seen.add(current)
            names = imported_names(MODULES[current], inside_functions=current in (name, "captioner.cli.options"))
            found |= names
            todo += own_modules(names)
    return found


def test_predict_never_reaches_lightning():
    found = reached("captioner.cli.predict")
    assert "captioner.models.captioner.load" in found
    assert not {name for name in found if name.startswith(("pytorch_lightning", "torchmetrics", "tensorboard"))}


# As on Windows, captioner finds nothing that POSIX alone has. Every module is imported, and a command run.
WINDOWS = """
import builtins, importlib, os, signal, sys, types
from captioner import __main__

MISSING = {"resource", "fcntl", "pwd", "grp", "termios", "tty", "pty"}
KEPT = {"SIGABRT", "SIGFPE", "SIGILL", "SIGINT", "SIGSEGV", "SIGTERM", "SIG_DFL", "SIG_IGN"}
POSIX = {"fork", "killpg", "getuid", "posix_fallocate", "O_NONBLOCK", "statvfs", "sysconf", "mkfifo"}

def without(module, gone):
    copy = types.ModuleType(module.__name__)
    copy.__dict__.update({name: value for name, value in vars(module).items() if name not in gone})
    return copy

modules = {"signal": without(signal, {name for name in dir(signal) if name.startswith("SIG")} - KEPT)}
modules["os"], real = without(os, POSIX), builtins.__import__

def import_(name, globals=None, locals=None, fromlist=(), level=0):
    if not str((globals or {}).get("__name__")).startswith("captioner"):
        return real(name, globals, locals, fromlist, level)
    if name in MISSING:
        raise ModuleNotFoundError(name, name=name)
    return modules.get(name) or real(name, globals, locals, fromlist, level)

builtins.__import__ = import_
for name in list(sys.modules):
    if name.startswith("captioner"):
        del sys.modules[name]
for name in sys.argv[1].split():
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:  # of an extra that is not installed
        if error.name in MISSING or error.name.startswith("captioner"):
            raise
importlib.import_module("captioner.training.checks").MIN_SECONDS = 0
sys.exit(importlib.import_module("captioner.__main__").main(sys.argv[2:]))
"""


@pytest.mark.slow
def test_windows_lacks_modules_and_signals(tiny, tmp_path):
    given = [" ".join(MODULES), *arguments(tiny, tmp_path / "run", "--check")]
    done = subprocess.run([sys.executable, "-c", WINDOWS, *given], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "checked: training, validation and checkpoints work" in done.stdout
    assert "memory: " not in done.stdout


# Half of the time of importing torch and torchvision, if anything asks for it.
COMPILER = {"torch._dynamo", "torch._inductor", "sympy"}
SHAPES = """
def shapes(options):
    from captioner.config import ModelConfig
    from captioner.data.vocabulary import Vocabulary
    from captioner.models.backbones import meta_device
    from captioner.models.captioner import Captioner
    with meta_device():
        Captioner(ModelConfig(**options), Vocabulary(["a", "dog"]), None, "")
"""
LIGHT = [  # what runs, one after another in one process, and what is not loaded after it
    ("import captioner", {"torch", "numpy", "PIL"}),
    ("main(['--help'])", {"torch", "pytorch_lightning"}),
    ("import captioner.metrics", {"torch", "pytorch_lightning", "nltk", "pycocoevalcap"}),
    ("main(['predict', '--help'])", {"pytorch_lightning", "tensorboard", "pycocotools"}),
    ("import captioner.models.checkpoint", {"torch"}),
    (
        "main(['predict', 'data/photos/cat.jpg'])",
        {"pytorch_lightning", "tensorboard", "nltk", "torchvision", *COMPILER},
    ),
    *(
        (f"shapes({options})", COMPILER)
        for options in ({"grid": 7, "attention": "updown"}, {"frames": 2, "cell": "gru"})
    ),
]


def test_heavy_imports_wait_until_they_are_needed():
    code = f"""{SHAPES}
import sys
for line, absent in {LIGHT}:
    if line.startswith("main"):
        from captioner.__main__ import main
    exec(line)
    loaded = sorted(absent & set(sys.modules))
    assert not loaded, f"{{line}} loads {{loaded}}"
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
