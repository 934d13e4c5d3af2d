"""A figure with a label changes what the screen shows; one without is not on it."""

import io

import pytest

from cluster.observability.figures import FIGURES
from deploy.command.terminal import Terminal
from deploy.screen.narration import narrate
from deploy.screen.progress import Progress, parse_progress
from deploy.screen.screen import DemoView, plain_line, render

COMPLETE = {
    "run_id": "a run",
    "events_negative": 12_345,
    "events_ignored": 2_345,
    "events_duplicate": 345,
    "events_quarantined": 45,
    "messages_skipped": 55,
    "stop_error": "",
    "error": "",
    "notice": "a notice",
    "restarts": 1,
    "attempt": 2,
}


def _put(record, name, change):
    """A copy of the record with one field changed."""
    head, _, rest = name.partition(".")
    return {**record, head: _put(record[head], rest, change) if rest else change(record[head])}


def _other(value):
    if isinstance(value, str):
        return value[:-1] + "9"  # the digits of a version's name are its number
    if isinstance(value, list):
        return [entry + 3 for entry in value]
    return {**value, "more": 1} if isinstance(value, dict) else value * 3 + 1000


def _shown(record):
    now = parse_progress(record)
    view = DemoView(stage=now.state, produced=1, planned=10**9, progress=now)
    console = Terminal(width=160, height=60, record=True, file=io.StringIO())
    console.print(render(view))
    return "\n".join([console.export_text(), plain_line(view), *narrate(Progress(), now)])


@pytest.fixture
def record(progress_record):
    record = progress_record(**COMPLETE)
    record["index"] = {**record["index"], "gate": {}}
    return record


@pytest.mark.parametrize("figure", FIGURES, ids=lambda figure: figure.name)
def test_a_figure_is_on_the_screen_exactly_if_it_has_a_label(figure, record):
    changed = _put(record, figure.name, _other)
    assert (_shown(changed) != _shown(record)) == bool(figure.label)


def test_labels_of_counts_stand_beside_their_numbers(record):
    text = " ".join(_shown(record).split())
    for figure in FIGURES:
        if figure.set_aside or figure.name in ("dead_letters", "known_items", "step"):
            assert f"{figure.label} {record[figure.name]:,}" in text, figure.name
