"""Imports go only downward: a module imports from itself and from what stands above it."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# From the bottom up: a layer may import from the layers before it, and inside itself.
LAYERS = [
    ["lpd.compat"],
    ["lpd.errors"],
    ["lpd.launcher", "lpd.ahead", "lpd.marks", "lpd.heartbeat", "lpd.progress"],
    ["lpd.options", "lpd.files", "lpd.locks"],
    [
        "lpd.classes",
        "lpd.cli",
        "lpd.machine",
        "lpd.provenance",
        "lpd.randomness",
        "lpd.weights",
        "lpd.distributed",
    ],
    ["lpd.hashes", "lpd.hub"],
    ["lpd.tokenizer"],
    ["lpd.data"],
    ["lpd.texts"],
    ["lpd.orders"],
    ["lpd.models"],
    ["lpd.conditions"],
    ["lpd.pretrained"],
    ["lpd.sampling"],
    ["lpd.generation", "lpd.likelihood", "lpd.pipeline_options"],
    ["lpd.filling"],
    ["lpd.editing"],
    ["lpd.evaluation"],
    ["lpd.pipeline_results", "lpd.pipeline_inputs", "lpd.prompts"],
    ["lpd.pipeline_base"],
    ["lpd.training", "lpd.pipeline", "lpd.text_pipeline"],
]
# The same inside a package whose files stand in packages of their own.
INNER_LAYERS = {
    "lpd.evaluation": [
        ["features"],
        ["measures"],
        ["images", "plan_loss"],
        ["generated"],
        ["prompts"],
    ],
}
FILES = sorted((ROOT / "lpd").rglob("*.py"))


def module_name(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def group_of(module: str) -> str:
    return ".".join(module.split(".")[:2])


def imported_modules(file: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{file}: relative import"
            names |= {
                f"{node.module}.{a.name}" if node.module == "lpd" else node.module
                for a in node.names
            }
    return {name for name in names if name == "lpd" or name.startswith("lpd.")}


@pytest.mark.parametrize("file", FILES, ids=module_name)
def test_imports_go_downward(file: Path) -> None:
    level = {module: k for k, layer in enumerate(LAYERS) for module in layer}
    own = group_of(module_name(file))
    for imported in imported_modules(file):
        other = group_of(imported)
        if own == "lpd":
            assert other == "lpd.compat"
        else:
            assert other == own or level[other] < level[own], f"{own} imports {imported}"


@pytest.mark.parametrize("package", INNER_LAYERS)
def test_imports_inside_a_package_go_downward(package: str) -> None:
    level = {name: k for k, layer in enumerate(INNER_LAYERS[package]) for name in layer}
    files = {module_name(file): file for file in FILES}
    for module, file in files.items():
        if not module.startswith(f"{package}."):
            continue
        own = module.split(".")[2]
        assert own in level, f"{module} stands in none of the packages of {package}"
        for imported in imported_modules(file):
            # "from lpd.evaluation import x" would hide which package it is of.
            assert imported != package, f"{module} imports {package} itself"
            if imported.startswith(f"{package}."):
                other = imported.split(".")[2]
                assert other == own or level[other] < level[own], f"{module} imports {imported}"


def test_models_are_single_device_code() -> None:
    for file in (ROOT / "lpd" / "models").glob("*.py"):
        text = file.read_text()
        assert "torch.distributed" not in text
        assert ".cuda(" not in text
        assert text.count("\n") <= 400
