"""What `freshet refresh` prints of a version that was built, and its status."""

import json

import pytest
from typer.testing import CliRunner

from deploy.cli import app
from deploy.verbs import refresh

PASSED = {"name": "recall", "value": 0.98, "bound": 0.95, "passed": True}
FAILED = {"name": "recall", "value": 0.5, "bound": 0.95, "passed": False}
WHY = "recall is 0.5, the bound 0.95 (index.min_recall)"


@pytest.mark.parametrize(
    ("result", "status"),
    [
        ({"version": "v00000002", "items": 9, "gate": [PASSED]}, 0),
        ({"version": None, "items": 9, "gate": [FAILED], "refused": WHY}, 1),
    ],
)
def test_a_refused_version_is_reported_and_is_status_1(monkeypatch, tmp_path, result, status):
    monkeypatch.setattr(refresh, "run_refresh", lambda config, checkpoint: result)
    done = CliRunner().invoke(app, ["refresh", "--json", str(tmp_path / "out.json")])
    assert done.exit_code == status, done.output
    assert json.loads((tmp_path / "out.json").read_text()) == result
    assert ("index.min_recall" in done.output) == bool(status)
