"""Identifies the code that measured a cell. It is not part of the cell's name, but differences are reported."""

from __future__ import annotations

import ast
import hashlib
from functools import cache
from pathlib import Path
from types import ModuleType

import cluster
import model
import streaming
from cluster.evaluation.systems.systems import System

_FILES = {
    cluster: (
        "evaluation/protocol/batches.py",
        "evaluation/protocol/data.py",
        "evaluation/systems/fitting.py",
        "evaluation/protocol/interactions.py",
        "evaluation/measuring/measures.py",
        "evaluation/protocol/protocols.py",
        "evaluation/measuring/ranking.py",
        "evaluation/grids/walk_forward.py",
    ),
    streaming: ("catalogue/catalogue.py", "catalogue/records.py", "events/hashing.py", "events/signals.py"),
}
_TRAINED_FILES = {
    cluster: (
        "evaluation/systems/trained.py",
        "tables/local_rows.py",
        "tables/row_optimizer.py",
        "tables/sharded_embedding.py",
        "training/steps/candidates.py",
        "training/steps/train_step.py",
    ),
    model: ("*.py",),
}


def code_of(system: System) -> str:
    """A hash of the code that measures a system, hexadecimal; comments and docstrings do not affect it."""
    paths = _paths(_FILES)
    if system.trained:
        paths += _paths(_TRAINED_FILES)
    if system.source.startswith("model.baselines."):
        paths += _paths({model: ("baselines/*.py",)})
    digest = hashlib.sha256()
    for path in paths:
        digest.update(f"{path.parent.name}/{path.name} {_meaning(path)}\n".encode())
    return digest.hexdigest()[:16]


def _paths(files: dict[ModuleType, tuple[str, ...]]) -> list[Path]:
    found = []
    for package, patterns in files.items():
        folder = Path(str(package.__file__)).parent
        for pattern in patterns:
            paths = sorted(folder.glob(pattern))
            # Otherwise, a file that was moved would silently drop out of the hash.
            assert paths, f"no file of {package.__name__} is named {pattern}"
            found += paths
    return found


@cache
def _meaning(path: Path) -> str:
    """A hash of a file's syntax tree without docstrings."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            node.body = [line for line in body if not _is_text(line)]  # type: ignore[attr-defined]
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()


def _is_text(node: ast.AST) -> bool:
    """Whether a statement is only a string."""
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )
