"""Every field of progress.json is declared, with its unit and kind, and every declaration is of a field."""

from collections.abc import Mapping
from types import SimpleNamespace

import numpy as np
import pytest

from cluster.collectives import Collectives
from cluster.observability.figures import BY_NAME, FIGURES, SUMMED, rows_set_aside, scalars, summed_record
from cluster.observability.freshness import Freshness
from cluster.observability.progress_file import read_progress
from cluster.training.control import Report
from cluster.training.progress_report import ProgressReporter, rank_figures
from cluster.training.served.validation import served_validation
from retrieval.checks import GateReport
from retrieval.versions.store import VersionStore
from tests.support.unit_runs import small_run, train_steps

# Only what is an object of its own, or a list, is one figure whole.
WHOLE = (dict, list)


@pytest.fixture(scope="module")
def run():
    trained = small_run(with_actions=True)
    train_steps(trained, 4)  # the next step, an even one, has every loss term
    return trained


@pytest.fixture
def record(run, tmp_path):
    """What a run in full swing writes: a live version, a checkpoint, losses."""
    store = VersionStore(tmp_path / "index")
    building = store.begin()
    (building.path / "x").write_bytes(b"x")
    version = {"items": 9, "kind": "flat", "nlist": 1, "nprobe": 1, "recall": 1.0}
    store.promote(store.commit(building, version).name)
    freshness = Freshness()
    freshness.add(np.array([1.0, 2.0]))
    publisher = SimpleNamespace(
        last=SimpleNamespace(gate=GateReport([])), published=1, problem="", freshness=freshness
    )
    served = served_validation(run.config, rank=0)
    reporter = ProgressReporter(tmp_path, "a run", Collectives(), served=served)
    batch = run.batcher.next_batch(4)
    losses = run.train_step.train(run.train_step.prepare(batch, run.step), run.step)
    reporter.stepped(losses, 4)
    reporter.checkpointed(SimpleNamespace(step=4, location="/x/step-00000004"))
    reporter.update(run, Report(figures=rank_figures(run)), publisher)
    return read_progress(tmp_path)


def _leaves(value, name=""):
    whole = name in BY_NAME and BY_NAME[name].of in WHOLE
    if isinstance(value, Mapping) and not whole:
        for key, inner in value.items():
            yield from _leaves(inner, f"{name}.{key}" if name else key)
    else:
        yield name, value


def test_every_field_of_progress_json_is_declared_and_every_declaration_is_written(record):
    assert sorted(name for name, _ in _leaves(record)) == sorted(BY_NAME)


def test_every_value_has_the_declared_type_or_is_null(record):
    for name, value in _leaves(record):
        of = BY_NAME[name].of
        assert value is None or isinstance(value, (int, float) if of is float else of), name


def test_every_figure_has_a_kind_a_help_and_if_it_is_a_number_a_unit():
    assert len(BY_NAME) == len(FIGURES)
    for figure in FIGURES:
        assert figure.kind in ("counter", "gauge", "info")
        assert figure.help.endswith("."), figure.name
        assert bool(figure.unit) == (figure.kind != "info"), figure.name


def test_every_figure_that_ranks_exchange_is_counted_on_each_of_them(run):
    assert sorted(rank_figures(run)) == sorted(SUMMED)


def test_what_is_set_aside_is_counted_by_ranks_and_has_a_label():
    for figure in FIGURES:
        if figure.set_aside:
            assert figure.summed, figure.name
            assert figure.label, figure.name


def test_a_record_is_read_in_its_declared_types_without_what_is_null():
    assert scalars({"step": 3.0, "state": "training", "lag_events": None, "loss": {}, "other": 1}) == {
        "step": 3,
        "state": "training",
    }


def test_counts_of_what_was_set_aside_come_under_their_labels():
    assert rows_set_aside({"events_negative": 2, "events_ignored": 0, "messages_skipped": 5}) == {
        "negatives": 2,
        "skipped": 5,
    }


def test_sums_are_whole_numbers_and_null_where_a_rank_does_not_know():
    totals = dict.fromkeys(SUMMED, 2.0) | {"lag_events": float("nan"), "lag_messages": 1.6}
    record = summed_record(totals)
    assert (record["lag_events"], record["lag_messages"], record["rows_read"]) == (None, 2, 2)
