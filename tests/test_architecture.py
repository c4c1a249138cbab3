"""The house rules that a reader of the source relies on, held by a look at its syntax trees."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "vq_components"
FILES = sorted(PACKAGE.rglob("*.py"))
ALL_FILES = [*FILES, *sorted((ROOT / "tests").rglob("*.py")), *sorted((ROOT / "docs").rglob("*.py"))]

# What each room may import of the package. A new room says here what it stands on.
MAY_IMPORT = {
    "__init__": {"_distributed", "_model", "_serialization", "functional", "losses", "networks", "prior", "quantizers"},
    "_distributed": set(),
    "_operators": set(),
    "_model": {"functional", "networks", "quantizers"},
    "_serialization": {"_model", "prior", "quantizers"},
    "functional": {"_operators"},
    "losses": {"_distributed", "functional", "networks"},
    "metrics": {"functional", "plotting"},
    "networks": {"_distributed", "functional"},
    "plotting": set(),
    "prior": {"functional"},
    "quantizers": {"_distributed", "_operators", "functional"},
    # A kit for everybody's objects, which knows this package's quantizers and losses by their attributes.
    "testing": {"prior"},
}
# Constructors that keep the original's positional arguments, or whose parts have an obvious order.
POSITIONAL = {"NLayerDiscriminator", "VQLPIPSWithDiscriminator", "VQModel"}


def parametrize_files(files):
    return pytest.mark.parametrize("path", files, ids=[str(path.relative_to(ROOT)) for path in files])


def nodes(path):
    return list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))


def room_of(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_names(path):
    """Absolute dotted name of everything that a file imports: ``torch.nn``, ``vq_components.functional.perplexity``."""
    package = ["vq_components", *path.relative_to(PACKAGE).parts[:-1]]
    for node in nodes(path):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            yield from (".".join([*base, *filter(None, [node.module]), alias.name]) for alias in node.names)


@parametrize_files(FILES)
def test_imports_point_one_way(path):
    rooms = {name.split(".")[1] for name in imported_names(path) if name.startswith("vq_components.")}
    assert rooms <= MAY_IMPORT[room_of(path)] | {room_of(path)}


@parametrize_files([path for path in FILES if path.name not in ("_distributed.py", "_processes.py")])
def test_only_one_file_names_torch_distributed(path):
    attributes = {ast.unparse(node) for node in nodes(path) if isinstance(node, ast.Attribute)}
    assert not {name for name in {*imported_names(path), *attributes} if name.startswith("torch.distributed")}


@parametrize_files(FILES)
def test_the_package_has_no_print_and_no_assert(path):
    names = {node.id for node in nodes(path) if isinstance(node, ast.Name)}
    assert "print" not in names
    assert not [node.lineno for node in nodes(path) if isinstance(node, ast.Assert)]


@parametrize_files(ALL_FILES)
def test_no_file_is_over_300_lines(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 300


@parametrize_files(FILES)
def test_no_function_is_over_50_lines(path):
    functions = [node for node in nodes(path) if isinstance(node, ast.FunctionDef)]
    assert not {node.name: node.lineno for node in functions if node.end_lineno - node.lineno >= 50}


@parametrize_files([path for path in FILES if path.name != "__init__.py"])
def test_public_constructors_take_at_most_two_positional_arguments(path):
    """Beyond ``self``; the rest goes by name, so that like arguments cannot be swapped."""
    public = {name.rpartition(".")[2] for init in PACKAGE.rglob("__init__.py") for name in imported_names(init)}
    constructors = {
        owner.name: method.args
        for owner in nodes(path)
        if isinstance(owner, ast.ClassDef) and owner.name in public - POSITIONAL
        for method in owner.body
        if isinstance(method, ast.FunctionDef) and method.name == "__init__"
    }
    assert not {name for name, args in constructors.items() if len(args.posonlyargs + args.args) > 3 or args.vararg}
