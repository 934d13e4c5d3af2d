import json

import pytest

from deploy.command.output import write_json
from deploy.demo.figures import DemoFigures
from deploy.screen.progress import parse_progress

# The fields that the demo's JSON file promises (issue 5, point 1).
PROMISED = {
    "broker",
    "events_produced",
    "events_trained",
    "events_negative",
    "events_ignored",
    "events_lost",
    "events_doubled",
    "dead_letters",
    "steps",
    "workers",
    "examples_per_s",
    "progressive_hr10",
    "popularity_hr10",
    "cooccurrence_hr10",
    "progressive_sample",
    "served_hr10",
    "served_sample",
    "index_versions",
    "index_kind",
    "index_nlist",
    "index_nprobe",
    "index_recall",
    "freshness_p50_s",
    "freshness_p99_s",
    "restarts",
    "wall_s",
}


@pytest.fixture
def figures(progress_record) -> DemoFigures:
    figures = DemoFigures(events_produced=60_000)
    figures.take_progress(parse_progress(progress_record()))
    figures.take_accounting(
        {
            "events_in_topic": 60_000,
            "events_trained": 60_000,
            "events_negative": 0,
            "events_ignored": 0,
            "events_lost": 0,
            "events_doubled": 0,
            "dead_letters": 0,
            "hash_equal": True,
            "users_checked": 943,
        }
    )
    return figures


def test_the_json_file_has_the_promised_fields(figures, tmp_path):
    write_json(tmp_path / "demo.json", figures)
    written = json.loads((tmp_path / "demo.json").read_text())
    assert set(written) >= PROMISED
    assert written["broker"] == "apache-kafka"
    assert written["index_recall"] == 0.987
    assert written["freshness_p99_s"] == 13.9


def test_the_progressive_figures_are_those_of_the_second_half(figures):
    assert figures.progressive_hr10 == pytest.approx(0.20)
    assert figures.cooccurrence_hr10 == pytest.approx(0.15)
    assert figures.popularity_hr10 == pytest.approx(0.07)
    assert figures.progressive_sample == 3000
    assert (figures.served_hr10, figures.served_sample) == (pytest.approx(0.20), 900)
    assert figures.served_dropped == 2345


def test_a_run_with_all_figures_in_order_is_ok(figures):
    figures.judge()
    assert figures.ok
    assert figures.problems == []


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"events_lost": 3}, "3 events were lost"),
        ({"events_doubled": 1}, "1 events were trained twice"),
        ({"events_trained": 59_999}, "59,999 of 60,000"),
        ({"index_versions": 2}, "train.publish_every_s"),
        ({"hash_equal": False}, "hash-sum"),
        ({"chaos": True}, "no worker was killed"),
        ({"chaos": True, "killed_pid": 7}, "nothing restarted"),
    ],
)
def test_each_figure_out_of_order_is_a_problem(figures, changes, problem):
    for name, value in changes.items():
        setattr(figures, name, value)
    figures.judge()
    assert not figures.ok
    assert any(problem in text for text in figures.problems)


def test_events_that_were_set_aside_are_accounted_for(figures):
    figures.events_trained, figures.events_negative, figures.events_ignored = 59_000, 900, 100
    figures.judge()
    assert figures.ok
    figures.events_ignored = 99
    figures.judge()
    assert figures.problems == ["59,999 of 60,000 produced events were trained or set aside"]


def test_a_chaos_run_that_restarted_is_ok(figures):
    figures.chaos, figures.killed_pid, figures.restarts = True, 7, 1
    figures.judge()
    assert figures.ok


def test_a_bounded_run_that_published_nothing_has_null_figures(tmp_path):
    figures = DemoFigures()
    figures.take_progress(parse_progress(None))
    write_json(tmp_path / "demo.json", figures)
    written = json.loads((tmp_path / "demo.json").read_text())
    assert written["index_recall"] is None
    assert written["progressive_hr10"] is None
