"""Who may import whom, and what product code never does. Read from the source alone: nothing is imported."""

import ast
import functools
import re
import sys
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import packages_distributions
from pathlib import Path, PurePosixPath

import pytest

ROOT = Path(__file__).parent.parent
COMPOSITION_ROOT = "lfs.cli"
MAY_IMPORT: Mapping[str, Sequence[str]] = {
    "search_space": ("search_space",),
    "trainers": ("search_space", "trainers"),
    "lfs": ("search_space", "trainers", "lfs"),
    "analysis": ("search_space", "lfs.journal", "lfs.trial", "analysis"),
}
IN_ONE_MODULE = ("mlflow", "onnx", "optuna", "plotly", "pyarrow", "ray", "timm", "triton")
SECOND_MODULE = {"ray": "lfs.tune"}
BANNED_MODULES = ("cloudpickle", "dill", "joblib", "marshal", "pickle", "shelve")
BANNED_NAMES = {
    "__import__": "imports are statements, where these rules see them",
    "importlib.import_module": "imports are statements, where these rules see them",
    "eval": "never runs text as code",
    "exec": "never runs text as code",
    "os.popen": "never starts a shell",
    "os.system": "never starts a shell",
    "pandas.read_pickle": "never unpickles",
    "sys.path": "never changes where modules are found",
    "trainers.data.load_sealed_test": "leaves the test identities sealed",
    "trainers.load_sealed_test": "leaves the test identities sealed",
    "yaml.load": "never lets a file name the classes to make",
}
EXEMPT = {
    "lfs.compare": ("trainers.data.load_sealed_test",),
    "trainers.foreign_networks": ("importlib.import_module",),
}
"""By module: the banned names that are its job."""
BANNED_ARGUMENTS = {"shell": "never starts a shell", "allow_pickle": "never unpickles"}


class Module:
    """One source file, parsed: its dotted name, its imports as (full name, line), and what its names stand for."""

    def __init__(self, path: str, source: str) -> None:
        self.path = path
        self.tree = ast.parse(source, path)
        parts = PurePosixPath(path).with_suffix("").parts
        self.name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        self.package = parts[0]
        self.imports: list[tuple[str, int]] = []
        self.relative_lines: list[int] = []
        self.meaning: dict[str, str] = {}
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    self.imports.append((alias.name, node.lineno))
                    first = alias.name.partition(".")[0]
                    self.meaning[alias.asname or first] = alias.name if alias.asname else first
            elif isinstance(node, ast.ImportFrom) and node.level:
                self.relative_lines.append(node.lineno)
            elif isinstance(node, ast.ImportFrom):
                for alias in node.names:
                    full_name = f"{node.module}.{alias.name}"
                    self.imports.append((full_name, node.lineno))
                    self.meaning[alias.asname or alias.name] = full_name

    def full_name(self, node: ast.AST) -> str | None:
        """`t.load` → `torch.load` under `import torch as t`; None for what is not a dotted name."""
        if isinstance(node, ast.Name):
            return self.meaning.get(node.id, node.id)
        if isinstance(node, ast.Attribute) and (left := self.full_name(node.value)):
            return f"{left}.{node.attr}"
        return None


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def import_violations(module: Module) -> Iterator[tuple[int, str]]:
    for line in module.relative_lines:
        yield line, "imports are absolute"
    for name, line in module.imports:
        if name.partition(".")[0] in BANNED_MODULES:
            yield line, f"imports {name}: no pickle of any kind in product code"
        if within(name, COMPOSITION_ROOT):
            yield line, f"imports {name}: nothing imports the composition root"
        ours = name.partition(".")[0] in MAY_IMPORT
        if ours and module.name != COMPOSITION_ROOT:
            allowed = MAY_IMPORT[module.package]
            if not any(within(name, package) for package in allowed):
                yield line, f"imports {name}: {module.package} may import {', '.join(allowed)} only"


def banned_use_violations(module: Module) -> Iterator[tuple[int, str]]:
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Name | ast.Attribute):
            name = module.full_name(node)
            if name in BANNED_NAMES and name not in EXEMPT.get(module.name, ()):
                yield node.lineno, f"uses {name}: product code {BANNED_NAMES[name]}"
        if isinstance(node, ast.Call):
            true_arguments = {
                keyword.arg
                for keyword in node.keywords
                if isinstance(keyword.value, ast.Constant) and keyword.value.value is True
            }
            for argument in BANNED_ARGUMENTS.keys() & true_arguments:
                yield node.lineno, f"passes {argument}=True: product code {BANNED_ARGUMENTS[argument]}"
            if module.full_name(node.func) == "torch.load" and "weights_only" not in true_arguments:
                yield node.lineno, "calls torch.load without weights_only=True"


def vendor_violations(modules: Sequence[Module]) -> Iterator[str]:
    for vendor in IN_ONE_MODULE:
        first_use = {
            module.path: min(lines)
            for module in modules
            if module.name != SECOND_MODULE.get(vendor)
            and (lines := [line for name, line in module.imports if within(name, vendor)])
        }
        if len(first_use) > 1:
            for path, line in first_use.items():
                yield f"{path}:{line}: imports {vendor}, which belongs in one module, not in {len(first_use)}"


@functools.cache
def foreign_names() -> frozenset[str]:
    """Import names of the standard library and of the declared dependencies."""
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    wanted = {re.split(r"[\[<>=~! ]", requirement)[0] for requirement in declared}
    ours = {name for name, owners in packages_distributions().items() if wanted & {owner.lower() for owner in owners}}
    return frozenset(sys.stdlib_module_names | ours)


def find_violations(sources: Mapping[str, str]) -> list[str]:
    """Every broken rule as 'file:line: rule', given sources by path relative to the repository."""
    modules = [Module(path, source) for path, source in sources.items()]
    taken = foreign_names()
    found = [
        f"{module.path}:1: is named like the module '{name}' of the standard library or a dependency"
        for module in modules
        if (name := module.name.rpartition(".")[2]) in taken
    ]
    for module in modules:
        broken = [*import_violations(module), *banned_use_violations(module)]
        found += [f"{module.path}:{line}: {rule}" for line, rule in sorted(broken)]
    return found + list(vendor_violations(modules))


def product_sources() -> dict[str, str]:
    files = [file for package in MAY_IMPORT for file in sorted((ROOT / package).rglob("*.py"))]
    return {file.relative_to(ROOT).as_posix(): file.read_text(encoding="utf-8") for file in files}


def test_product_code_keeps_every_rule() -> None:
    sources = product_sources()
    assert {f"{package}/__init__.py" for package in MAY_IMPORT} <= sources.keys()
    violations = find_violations(sources)
    assert not violations, "\n".join(violations)


@pytest.mark.parametrize(
    ("path", "source", "rule"),
    [
        ("search_space/a.py", "import trainers", "search_space may import search_space only"),
        (
            "trainers/a.py",
            "def f():\n    from lfs.trial import Trial",
            "trainers may import search_space",
        ),
        ("lfs/a.py", "import analysis.report", "lfs may import search_space, trainers, lfs only"),
        ("analysis/a.py", "from lfs import config", "analysis may import"),
        ("analysis/a.py", "from trainers import Task", "analysis may import"),
        ("lfs/a.py", "from lfs import cli", "nothing imports the composition root"),
        ("lfs/a.py", "from . import trial", "imports are absolute"),
        ("lfs/a.py", "from pickle import loads", "no pickle of any kind"),
        ("lfs/a.py", "import importlib as i\ni.import_module('ray')", "imports are statements"),
        ("lfs/a.py", "run = eval", "never runs text as code"),
        ("lfs/a.py", "exec('1')", "never runs text as code"),
        ("lfs/a.py", "import torch as t\nt.load('f')", "torch.load without weights_only=True"),
        ("lfs/a.py", "import torch\ntorch.load('f', weights_only=False)", "torch.load without weights_only=True"),
        ("lfs/a.py", "from yaml import load\nload('')", "never lets a file name the classes"),
        ("lfs/a.py", "import numpy as np\nnp.load('f', allow_pickle=True)", "never unpickles"),
        ("lfs/a.py", "import subprocess\nsubprocess.run('ls', shell=True)", "never starts a shell"),
        ("lfs/a.py", "import sys\nsys.path.insert(0, '.')", "never changes where modules are found"),
        ("lfs/a.py", "from trainers.data import load_sealed_test\nload_sealed_test()", "leaves the test identities"),
        ("lfs/queue.py", "", "named like the module 'queue'"),
        ("lfs/PIL.py", "", "named like the module 'PIL'"),
    ],
)
def test_a_planted_violation_is_named_with_its_file_and_line(path: str, source: str, rule: str) -> None:
    line = source.count("\n") + 1
    assert any(found.startswith(f"{path}:{line}: ") and rule in found for found in find_violations({path: source}))


def test_the_sealed_test_is_opened_in_one_place() -> None:
    source = "from trainers.data import load_sealed_test\nload_sealed_test()"
    assert find_violations({"lfs/compare.py": source}) == []
    assert "leaves the test identities sealed" in "".join(find_violations({"lfs/comparison.py": source}))


def test_a_second_module_that_imports_a_vendor_is_named() -> None:
    uses = "import ray\n"
    assert find_violations({"lfs/a.py": uses, "lfs/tune.py": uses, "lfs/cli.py": "import lfs.a"}) == []
    assert find_violations({"lfs/a.py": uses, "trainers/b.py": f"import os\n{uses}"}) == [
        "lfs/a.py:1: imports ray, which belongs in one module, not in 2",
        "trainers/b.py:2: imports ray, which belongs in one module, not in 2",
    ]


def test_lawful_code_is_left_alone() -> None:
    source = "import torch\nnetwork.eval()\ntorch.load('f', weights_only=True)\nfrom lfs.journal import Journal\n"
    assert find_violations({"analysis/a.py": source, "lfs/cli.py": "import analysis.report, trainers"}) == []
