"""A run's state is changed in one file only, so that changes are easy to find."""

import ast
from dataclasses import fields
from pathlib import Path

import cluster
from cluster.training.state.run import TrainingRun

ROOT = Path(cluster.__file__).parent
OWNER = ROOT / "training" / "state" / "run.py"


def _is_run(node):
    """`run`, `self.run`, `self._run`, `old`, …: whatever names a run in this package."""
    name = node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""
    return name.strip("_") in ("run", "old", "earlier")


def _root(target):
    """The attribute of a run that an assignment reaches into, if it does."""
    while isinstance(target, ast.Attribute | ast.Subscript):
        if isinstance(target, ast.Attribute) and _is_run(target.value):
            return target.attr
        target = target.value
    return None


def _written(source):
    for node in ast.walk(ast.parse(source)):
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        for target in targets:
            each = target.elts if isinstance(target, ast.Tuple) else [target]
            yield from ((node.lineno, _root(one)) for one in each if one is not None and _root(one))  # type: ignore[attr-defined]


def test_no_other_file_assigns_to_a_runs_state():
    own = {field.name for field in fields(TrainingRun)}
    found = [
        f"{path.relative_to(ROOT)}:{line} {name}"
        for path in ROOT.rglob("*.py")
        if path != OWNER
        for line, name in _written(path.read_text())
        if name in own
    ]
    assert found == []


def test_what_is_looked_for_would_be_found():
    source = "run.step += 1\nself.run.notice = ''\nself._run.stream.origin[3] = 4\na, old.positions = 1, 2\nrun.x.f()"
    assert [name for _, name in _written(source)] == ["step", "notice", "stream", "positions"]
