"""The order of the core's modules: imports run downward, never upward and never in a circle."""

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

CORE = Path(__file__).parents[1] / "seqlora_core"
LAYERS = (  # from the bottom to the top: modules or packages, by the start of their name
    ("errors",),
    ("monitor", "devices", "randomness", "hashing", "files", "tensor_file", "subspace", "plots"),
    (
        "mini",
        "data.formats",
        "data.prompts",
        "data.words",
        "data.own_words",
        "data.buckets",
        "data.captions",
        "data.hold_out",
        "data.listing",
        "data.images",
        "data.reference_folder",
        "data.stream",
    ),
    ("model",),
    ("data.dataset", "data.encoding"),
    ("bank",),
    ("training",),
    ("composition",),
    ("evaluation",),
    ("cli",),
    ("__main__",),
)
# ComfyUI loads the core as part of the node pack, where its own name is another: absolute imports of itself fail.
FOREIGN = {"comfy", "comfy_api", "nodes", "folder_paths", "seqlora_core", "tests"}
PLAIN = ("__init__", "data.__init__")  # hold nothing but a docstring


def modules() -> dict[str, Path]:
    """Module name within the core -> its file."""
    return {".".join(path.relative_to(CORE).with_suffix("").parts): path for path in sorted(CORE.rglob("*.py"))}


def imports(name: str, known: dict[str, Path]) -> Iterator[str]:
    """The core's modules that a module imports, wherever in its text."""
    package = name.split(".")[:-1]
    for node in ast.walk(ast.parse(known[name].read_text("utf-8"))):
        if not (isinstance(node, ast.ImportFrom) and node.level):
            continue
        base = [*package[: len(package) - node.level + 1], *(node.module.split(".") if node.module else [])]
        for alias in node.names:
            candidates = [[*base, alias.name], [*base, alias.name, "__init__"], base, [*base, "__init__"]]
            yield next(found for found in map(".".join, candidates) if found in known)


def layer(name: str) -> int:
    """The place of a module in `LAYERS`."""
    return next(
        place
        for place, prefixes in enumerate(LAYERS)
        if any(name == prefix or name.startswith(f"{prefix}.") for prefix in prefixes)
    )


def test_no_module_of_the_core_imports_upward():
    known = modules()
    upward = [
        f"{name} imports {other}"
        for name in known
        for other in imports(name, known)
        if name not in PLAIN and other not in PLAIN and layer(other) > layer(name)
    ]
    assert not upward


def test_the_modules_of_the_core_import_each_other_without_a_circle():
    known = modules()
    TopologicalSorter({name: set(imports(name, known)) - {name} for name in known}).prepare()


def test_the_core_imports_nothing_of_the_nodes_or_of_comfyui():
    for name, path in modules().items():
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            foreign = {imported.split(".")[0] for imported in names} & FOREIGN
            assert not foreign, name
            depth = len(path.relative_to(CORE).parts)
            assert not (isinstance(node, ast.ImportFrom) and node.level > depth), name
