import io
import math
import re

import pytest

from deploy.command.terminal import Terminal
from deploy.screen.display import Display
from deploy.screen.narration import narrate
from deploy.screen.progress import Progress, parse_progress
from deploy.screen.screen import DemoView, number, plain_line, rate, render, sparkline

MOMENT = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d[+-]\d\d:\d\d"


def screen_text(view: DemoView, width: int = 80, height: int = 40) -> str:
    console = Terminal(width=width, height=height, record=True, file=io.StringIO())
    console.print(render(view))
    return console.export_text()


def test_the_screen_shows_every_figure_of_the_progress(progress_record):
    view = DemoView("Freshet demo", "streaming", 71.2, 64_000, 100_000, parse_progress(progress_record()))
    text = screen_text(view)
    for shown in (
        ["64,000", "60,123", "59,976", "~75,123 events", "dead letters"],
        ["6.123", "5.500", "0.310", "0.410", "1.200", "2.200", "1.900", "1,043"],
        [".150", ".100", ".070", "HR@10 on 6,000 events, exact: among all items by the model in training"],
        ["served v6", ".200", "on 1,500 events, served: by the live version, as users got it"],
        ["v6", "1,682 items", "recall@10 .987", "nprobe 9 of 41", "6 versions", "ivf_fp16"],
        ["p50 4.2 p99 9.5 s in 5 min", "p50 7.1 p99 13.9 s since the start", "step 240"],
    ):
        for part in shown:
            assert part in text


def test_the_screen_fits_80_columns_and_24_lines_before_its_messages(progress_record):
    lines = screen_text(DemoView(progress=parse_progress(progress_record()))).rstrip("\n").split("\n")
    assert max(map(len, lines)) <= 80
    assert len(lines) <= 24


def test_the_screen_says_what_the_gates_said_of_the_last_version(progress_record):
    def text(quality):
        record = progress_record()
        quality = {"name": "quality", "value": quality, "bound": 0.0712, "passed": quality > 0.0712}
        index = {**record["index"], "gate": {"checks": [quality]}}
        return screen_text(DemoView(progress=parse_progress({**record, "index": index})))

    assert "index (gates passed, quality 0.1 ≥ 0.0712), from append to servable" in text(0.1)
    assert "index (last refused: quality 0.01 < 0.0712), from append to servable" in text(0.01)


def test_negatives_and_ignored_events_are_shown_where_there_are_some(progress_record):
    def view(**counts):
        return DemoView(progress=parse_progress(progress_record(**counts)))

    assert "negatives" not in screen_text(view())
    text = screen_text(view(events_negative=10_234))
    assert "negatives 10,234" in " ".join(text.split())
    assert "ignored" not in text
    assert "trained 59,976, 7 negatives |" in plain_line(view(events_negative=7))


def test_a_screen_before_anything_is_known_has_dashes_and_no_nan():
    text = screen_text(DemoView(planned=0))
    assert "nan" not in text.lower()
    assert "no version yet" in text


def test_the_screen_shows_only_the_newest_messages(progress_record):
    view = DemoView(messages=[f"message {n}" for n in range(50)])
    text = screen_text(view)
    assert "message 49" in text
    assert "message 20" not in text


def test_a_terminal_of_24_lines_shows_the_newest_messages_below_all_panels(progress_record):
    messages = [f"message {n}" for n in range(50)]
    for counts, shown in (({}, 3), ({"events_negative": 7, "events_ignored": 8}, 1)):
        view = DemoView(produced=1, progress=parse_progress(progress_record(**counts)), messages=messages)
        lines = screen_text(view, height=24).rstrip("\n").split("\n")
        assert len(lines) == 24
        assert lines[-shown:] == messages[-shown:]
        assert lines[-shown - 1].startswith("╰")


def test_a_terminal_that_is_too_low_for_the_panels_shows_no_message(progress_record):
    view = DemoView(progress=parse_progress(progress_record()), messages=["message"])
    assert "message" not in screen_text(view, height=18)


def test_the_plain_line_has_the_figures_and_restarts_only_if_there_were_some(progress_record):
    line = plain_line(DemoView(produced=64_000, progress=parse_progress(progress_record())))
    assert "produced 64,000 read 60,123 trained 59,976" in line
    assert "HR@10 .150 (popularity .070, co-occurrence .100), served .200 (2,345 dropped) |" in line
    assert "restarts" not in line
    again = plain_line(DemoView(progress=parse_progress(progress_record(restarts=1))))
    assert "restarts 1" in again


def test_nothing_is_said_of_producing_where_nobody_produces_here(progress_record):
    view = DemoView(progress=parse_progress(progress_record()))
    assert "produced" not in screen_text(view)
    assert "read 60,123 trained 59,976" in plain_line(view)
    assert "produced" not in plain_line(view)


def test_the_lag_is_in_events_and_not_known_before_the_run_has_looked(progress_record):
    assert "| lag about 75,123 events |" in plain_line(DemoView(progress=parse_progress(progress_record())))
    assert "| lag 0 events |" in plain_line(DemoView(progress=parse_progress(progress_record(lag_events=0))))
    for unknown in (Progress(), parse_progress(progress_record(lag_events=None))):
        assert "| lag not yet known |" in plain_line(DemoView(progress=unknown))


def test_a_sparkline_spans_the_scale_and_leaves_gaps():
    assert sparkline([0.0, 0.5, 1.0, math.nan], 0.0, 1.0) == "▁▅█ "
    assert sparkline([0.3, 0.3], 0.3, 0.3) == "▁▁"


@pytest.mark.parametrize(
    ("value", "text"), [(0.2114, ".211"), (1.0, "1.000"), (0.0, ".000"), (None, "–"), (math.nan, "–")]
)
def test_rates_are_written_without_a_leading_zero(value, text):
    assert rate(value) == text


def test_numbers_are_grouped():
    assert number(1234567) == "1,234,567"


def test_the_narration_tells_each_change_once(progress_record):
    before = parse_progress(progress_record())
    after = parse_progress(
        progress_record(
            restarts=1,
            attempt=2,
            checkpoint={"step": 300},
            index={"version": "v00000007", "versions": 7, "items": 1682, "recall": 0.98},
            dead_letters=5,
        )
    )
    lines = narrate(before, after)
    assert [line.split()[0] for line in lines] == ["workers", "checkpoint", "index", "3"]
    assert narrate(after, after) == []


def test_the_narration_tells_a_group_that_was_resized_from_one_that_was_lost(progress_record):
    before = parse_progress(progress_record(workers=1))
    after = parse_progress(progress_record(workers=3, restarts=1, attempt=2))
    assert narrate(before, after) == [
        "the group changes from 1 to 3 workers; attempt 2 resumes from the last checkpoint"
    ]


def test_the_narration_says_when_the_workers_are_ready(progress_record):
    assert narrate(Progress(), parse_progress(progress_record(step=0)))[0] == "2 workers are ready at step 0"


def test_what_a_run_does_not_take_from_its_checkpoint_is_told_once(progress_record):
    now = parse_progress(progress_record(notice="user attributes: age dropped"))
    assert "user attributes: age dropped" in narrate(Progress(), now)
    assert narrate(now, now) == []


def test_without_a_terminal_messages_are_printed_as_they_come(progress_record):
    out = io.StringIO()
    view = DemoView(progress=parse_progress(progress_record()))
    with Display(view, Terminal(file=out, width=80, soft_wrap=True)) as display:
        display.say("Apache Kafka is ready [on] 127.0.0.1:1")
        display.update()
        display.update()
    lines = out.getvalue().splitlines()
    assert re.fullmatch(rf"{MOMENT}  Apache Kafka is ready \[on\] 127.0.0.1:1", lines[0])
    [figures] = [line for line in lines if "trained 59,976" in line]
    assert re.match(rf"{MOMENT}  starting | ", figures)


def test_on_a_terminal_the_panels_are_drawn():
    out = io.StringIO()
    console = Terminal(file=out, width=80, height=40, force_terminal=True)
    with Display(DemoView(stage="streaming"), console) as display:
        display.say("checkpoint committed at step 1")
    assert "HR@10 on 0 events, exact" in out.getvalue()
    assert "checkpoint committed at step 1" in out.getvalue()


def test_why_there_are_no_deltas_is_on_the_screen(progress_record):
    deltas = {"version": None, "number": 0, "problem": "deltas cannot be written: No space left on device"}
    text = screen_text(DemoView(produced=1, progress=parse_progress(progress_record(deltas=deltas))))
    assert "none at present: deltas cannot be written" in text
    text = screen_text(DemoView(produced=1, progress=parse_progress(progress_record(deltas=None))))
    assert "newest   none yet" in text


def test_what_is_wrong_with_data_is_one_short_line_by_code_only_if_something_is(progress_record):
    def view(**counts):
        record = progress_record()
        return DemoView(progress=parse_progress({**record, "faults": {**record["faults"], **counts}}))

    assert "faults" not in screen_text(view()) + plain_line(view())
    found = view(late=3, wrong_partition=1_240, schema=7, not_json=1)
    said = "faults wrong_partition 1,240, schema 7, late 3, 1 more"
    assert screen_text(found).rstrip().endswith(said)
    assert f"| {said}" in plain_line(found)


def test_a_long_new_item_is_cut_and_no_name_of_a_row_is(progress_record):
    deltas = {"version": "v00000020", "number": 1, "published": 161}
    parsed = parse_progress(progress_record(deltas=deltas))
    view = DemoView(progress=parsed, new_item=f"{'x' * 80} can be recommended")
    text = screen_text(view)
    for name in ("live ", "newest ", "versions ", "deltas ", "new item xxx"):
        assert f"│ {name}" in text
