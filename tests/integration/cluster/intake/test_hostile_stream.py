"""A training run on a stream that is wrong in every way, on a real broker: nothing is lost, doubled or unexplained."""

from dataclasses import replace
from unittest.mock import patch

import numpy as np
import orjson
import pyarrow as pa
import pytest

from cluster.audit.exactly_once import verify_exactly_once
from cluster.audit.state import digest, read_state
from cluster.config import ProgressiveConfig
from cluster.training.steps.candidates import Runs
from cluster.training.steps.quarantine import PoisonedTraining
from cluster.training.steps.train_step import query_inputs  # type: ignore[attr-defined]
from streaming.codecs.codec import ARROW, ENCODING_HEADER, encode_events
from tests.support.ranks import run_on_ranks
from tests.support.step_faults import WEIGHT as RAISING_WEIGHT
from tests.support.step_faults import raising_at
from tests.support.worker_runs import (
    START_MS,
    config_of,
    events,
    newest,
    produce,
    reasons_of,
    records_of,
    send_raw,
    train,
    users_of,
)

FAR_AHEAD_MS = 4_000_000_000_000
HEADERS = [(ENCODING_HEADER, ARROW)]


def _event(user: int, n: int, **fields: object) -> dict[str, object]:
    return {"user_id": user, "item_id": 7, "timestamp_ms": START_MS + n * 1000, **fields}


def _json(partition: int, event: dict[str, object] | bytes) -> dict[str, object]:
    return {"value": event, "partition": partition}


def test_what_cannot_be_used_is_dead_lettered_with_its_reason_and_every_row_is_accounted_for(
    stream_factory, tmp_path
):
    wide = stream_factory(2, max_late_s=500.0)
    stream = replace(wide, max_message_bytes=20_000)
    (mine,), (theirs,) = users_of(0, 2), users_of(1, 2)
    produce(wide, events(300))
    mixed = pa.RecordBatch.from_pylist([_event(mine, 400), _event(theirs, 401), _event(mine, 402)])
    send_raw(
        wide,
        [
            _json(0, b"{broken"),
            _json(0, b""),
            _json(1, b'["no", "object"]'),
            _json(1, {"user_id": theirs, "timestamp_ms": 5}),
            _json(0, _event(mine, 400, weight="much")),
            {"value": b"no arrow at all", "partition": 0, "headers": HEADERS},
            {"value": b"?", "partition": 0, "headers": [(ENCODING_HEADER, b"avro")]},
            _json(1, _event(theirs, 400, action="x" * 30_000)),
            _json(1, _event(theirs, 0) | {"timestamp_ms": FAR_AHEAD_MS}),
            {"value": encode_events(mixed), "partition": 0, "headers": HEADERS},
            _json(0, _event(mine, 900)),
            _json(0, _event(mine, 401)),
            _json(0, _event(mine, 399)),
        ],
    )
    produce(wide, events(100, first=900))
    config = config_of(stream, tmp_path)
    (progress,) = train(0, config)
    accounting = verify_exactly_once(config)
    assert accounting.exactly_once, accounting
    assert progress["rows_read"] == 300 + 15 + 100 == accounting.rows_read
    assert accounting.events_trained == 300 + 4 + 100
    reasons = reasons_of(stream)
    expected = [
        "bytes, more than stream.max_message_bytes=20000",
        "JSON object, not list",
        "avro",
        "behind the partition's latest by more than stream.max_late_s=500",
        "item_id is missing",
        "not JSON",
        "not a usable Arrow message",
        "s ahead of the broker's time (stream.max_future_s=86400)",
        "the message is empty",
        "user belongs to partition 1 of 2, but the row was read from partition 0",
        "weight must be a number",
    ]
    assert len(reasons) == len(expected) == accounting.dead_letters
    for text in expected:
        assert sum(text in reason for reason in reasons) == 1, (text, reasons)
    # A time far ahead did not carry the watermark away: what came after it was not late.
    assert newest(config).manifest["stream"]["skipped"] == {}


def test_a_duplicate_is_used_once_also_across_a_crash_and_only_within_the_window(stream_factory, tmp_path):
    stream = stream_factory(1, duplicate_window=100)
    produce(stream, events(150))
    produce(stream, events(30, first=120))
    produce(stream, events(20, first=150))
    produce(stream, events(10, first=0))
    no_ids = events(40, first=120).drop_columns(["event_id"])
    produce(stream, no_ids)
    whole = config_of(stream, tmp_path / "whole")
    part, rest = (config_of(stream, tmp_path / "cut", stop_after_rows=rows) for rows in (140, 0))
    runs = train(0, whole, part, rest)
    assert 140 <= runs[1]["rows_read"] < 200
    for config, progress in ((whole, runs[0]), (rest, runs[2])):
        accounting = verify_exactly_once(config)
        assert accounting.exactly_once, accounting
        assert progress["events_duplicate"] == accounting.events_duplicate == 30
        assert accounting.events_trained == 150 + 20 + 10 + 40
    assert not records_of(stream, stream.dead_letters)


RAISES = 9001
"""An item whose events raise in the step: below validation, which lets nothing through that is known to."""


def _poisoned(batch, *arguments):
    if (Runs.of(batch).targets_E == RAISES).any():
        raise OverflowError("an event of item 9001")
    return query_inputs(batch, *arguments)


def _train_poisoned(rank, *configs):
    with patch("cluster.training.steps.train_step.query_inputs", _poisoned):
        return train(rank, *configs)


def test_four_events_that_cannot_be_trained_on_are_quarantined_alone_and_a_cut_run_ends_as_a_whole_one(
    stream_factory, tmp_path
):
    stream = stream_factory(2, max_weight=3.4e38)
    poison = [
        _json(p, _event(users_of(p, 2)[0], 200, action="why", event_id=f"poison {p} {fault}", **fault))
        for p in (0, 1)
        for fault in ({"item_id": RAISES}, {"weight": 3e38})
    ]
    produce(stream, events(600))
    send_raw(stream, poison)
    produce(stream, events(900, first=601))
    whole = config_of(stream, tmp_path / "whole", batch_events=1024)
    cut = config_of(stream, tmp_path / "cut", batch_events=1024, stop_after_rows=1000)
    rest = replace(cut, train=replace(cut.train, stop_after_rows=0))
    progress = run_on_ranks(_train_poisoned, 2, whole, cut, rest)[0][-1]
    assert progress["events_quarantined"] == 4
    assert np.isfinite(list(progress["loss"].values())).all()
    assert digest(read_state(newest(whole))) == digest(read_state(newest(rest)))
    alone = config_of(stream, tmp_path / "alone", batch_events=1024)
    _train_poisoned(0, alone)
    for config in (whole, rest, alone):
        accounting = verify_exactly_once(config)
        assert accounting.exactly_once, accounting
        assert (accounting.events_quarantined, accounting.events_trained) == (4, 1500)
    letters = records_of(stream, stream.dead_letters)
    assert len({letter.key for letter in letters}) == 4
    found = [(orjson.loads(m.value), dict(m.headers)["reason"].decode()) for m in letters]
    assert {event["event_id"] for event, _ in found} == {message["value"]["event_id"] for message in poison}
    for event, reason in found:
        why = "OverflowError: an event of item 9001" if event["item_id"] == RAISES else "is not finite"
        assert reason.startswith("quarantined: training step ")
        assert why in reason


def _train_raising(rank, runs):
    found = []
    for place, config in runs.items():
        with raising_at(place):
            found += train(rank, config)
    return found


def test_an_event_that_raises_in_any_part_of_the_step_costs_itself_alone_on_two_ranks(
    stream_factory, tmp_path
):
    stream = stream_factory(2)
    produce(stream, events(60))
    heavy = [_event(users_of(p, 2)[0], 100, weight=RAISING_WEIGHT, event_id=f"heavy {p}") for p in (0, 1)]
    send_raw(stream, [_json(p, event) for p, event in enumerate(heavy)])
    produce(stream, events(60, first=61))
    runs = {
        place: config_of(stream, tmp_path / str(n), batch_events=128)
        for n, place in enumerate(
            ("masks", "scoring", "between messages", "after the last message", "backward")
        )
    }
    runs = {place: replace(config, progressive=ProgressiveConfig()) for place, config in runs.items()}
    told = run_on_ranks(_train_raising, 2, runs, timeout_s=300)[0]
    for progress, (place, config) in zip(told, runs.items(), strict=True):
        accounting = verify_exactly_once(config)
        assert accounting.exactly_once, (place, accounting)
        assert (accounting.events_quarantined, accounting.events_trained) == (2, 120), place
        assert progress["events_quarantined"] == 2
    letters = records_of(stream, stream.dead_letters)
    assert {orjson.loads(m.value)["event_id"] for m in letters} == {"heavy 0", "heavy 1"}
    reasons = {dict(m.headers)["reason"].decode() for m in letters}
    assert all("was refused (KeyError: 'an event of weight 77')" in reason for reason in reasons), reasons


def test_poison_batch_after_poison_batch_stops_with_an_error_that_names_the_settings(
    stream_factory, tmp_path
):
    stream = stream_factory(1, max_weight=3.4e38)
    user = users_of(0, 1)[0]
    send_raw(stream, [_json(0, _event(user, n, item_id=RAISES)) for n in range(200)])
    config = config_of(stream, tmp_path, max_poison_batches=2)
    with pytest.raises(PoisonedTraining, match=r"2 training steps.*train\.learning_rate.*max_poison_batches"):
        _train_poisoned(0, config)
    assert len(records_of(stream, stream.dead_letters)) == 128
