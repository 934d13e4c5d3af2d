"""Which code a cell was measured by."""

import pytest

import cluster
from cluster.evaluation.grids import code_version
from cluster.evaluation.grids.code_version import code_of
from cluster.evaluation.systems.systems import SYSTEMS


@pytest.mark.parametrize(
    "path", ["training/steps/train_step.py", "tables/sharded_embedding.py", "tables/row_optimizer.py"]
)
def test_the_code_of_a_trained_system_has_the_step_and_the_tables_in_it(monkeypatch, path):
    before = code_of(SYSTEMS["cl_epidtn"]), code_of(SYSTEMS["popularity"])
    meaning = code_version._meaning
    monkeypatch.setattr(
        code_version, "_meaning", lambda file: "other" if file.match(f"cluster/{path}") else meaning(file)
    )
    assert code_of(SYSTEMS["cl_epidtn"]) != before[0]
    assert code_of(SYSTEMS["popularity"]) == before[1]


def test_a_file_that_is_not_there_any_more_is_refused():
    with pytest.raises(AssertionError, match=r"no file of cluster is named training/moved\.py"):
        code_version._paths({cluster: ("training/moved.py",)})
