"""A range of a topic by either clock, and of Parquet files: exactly these events, reproducibly, then live."""

import os
import threading
import time
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cluster.audit.exactly_once import verify_exactly_once
from cluster.audit.state import digest, read_state
from cluster.checkpoints.parts.users import merged_users, partitions_in
from tests.support.ranks import run_on_ranks
from tests.support.worker_runs import START_MS, config_of, events, newest, produce, reasons_of, train


def _items(config) -> int:
    """How many items the histories hold."""
    tables = [merged_users(newest(config), p) for p in partitions_in(newest(config))]
    return sum(len(items) for table in tables for items in table["items"].to_pylist())


def test_a_range_by_broker_time_gives_the_same_run_twice_and_goes_on_live_without_an_end(
    stream_factory, tmp_path
):
    topic = stream_factory(2, metadata_every_s=60.0)
    borders = []
    for first, count in ((0, 60), (60, 150), (210, 40)):
        borders.append(int(time.time() * 1000))
        time.sleep(0.05)
        produce(topic, events(count, first=first))
        time.sleep(0.05)
    stream = replace(topic, from_time=str(borders[1]), until_time=str(borders[2]))
    once, again = (config_of(stream, tmp_path / name, bounded=False) for name in ("once", "again"))
    cut = replace(again, train=replace(again.train, stop_after_rows=70))
    runs = train(0, once, cut, again)
    for config, progress in ((once, runs[0]), (again, runs[2])):
        accounting = verify_exactly_once(config)
        assert accounting.exactly_once, accounting
        assert progress["events_trained"] == accounting.rows_read == 150
    assert 70 <= runs[1]["rows_read"] < 150
    assert digest(read_state(newest(once))) == digest(read_state(newest(again)))

    live = config_of(
        replace(topic, from_time=str(borders[1])),
        tmp_path / "live",
        bounded=False,
        linger_s=0.02,
        stop_after_rows=240,
    )
    later = threading.Timer(1.5, produce, (topic, events(50, first=250)))
    later.start()
    (progress,) = train(0, live)
    later.join()
    assert progress["events_trained"] == 240
    assert verify_exactly_once(live).exactly_once


def test_a_range_by_event_time_ignores_what_is_outside_accounts_for_it_and_is_the_same_again(
    stream_factory, tmp_path
):
    stream = stream_factory(2, max_future_s=0.0)
    shuffled = events(200).take(pa.array(np.random.default_rng(0).permutation(200)))
    produce(stream, shuffled)
    times = {"from_time": "2023-11-14T22:14:20Z", "until_time": str(START_MS + 150_000)}
    stream = replace(stream, time_axis="event", **times)
    once, again = (config_of(stream, tmp_path / name, bounded=False) for name in ("once", "again"))
    for config, progress in zip((once, again), train(0, once, again), strict=True):
        accounting = verify_exactly_once(config)
        assert accounting.exactly_once, accounting
        assert (accounting.events_trained, accounting.events_ignored) == (90, 110)  # 60 s to 150 s
        assert progress["events_ignored"] == 110
        assert _items(config) == 90
    assert digest(read_state(newest(once))) == digest(read_state(newest(again)))


def test_files_go_through_the_same_path_by_position_on_any_number_of_ranks(stream_factory, tmp_path):
    folder = tmp_path / "files"
    folder.mkdir()
    whole = events(300)
    bad = events(20, first=300).set_column(1, "item_id", pa.nulls(20, pa.int64()))
    for n, part in enumerate((whole.slice(0, 130), whole.slice(130), bad)):
        pq.write_table(pa.Table.from_batches([part]), folder / f"part-{n}.parquet", row_group_size=37)
    os.utime(folder / "part-0.parquet", (0, 0))  # older than its events, as a copy may be
    stream = stream_factory(1, parquet=str(folder), parquet_partitions=3)
    once, again, two = (config_of(stream, tmp_path / name) for name in ("once", "again", "two"))
    cut = replace(again, train=replace(again.train, stop_after_rows=100))
    runs = train(0, once, cut, again)
    assert 100 <= runs[1]["rows_read"] < 320
    run_on_ranks(train, 2, replace(two, train=replace(two.train, stop_after_rows=150)), two)
    for config in (once, again, two):
        accounting = verify_exactly_once(config)
        assert accounting.exactly_once, accounting
        assert (accounting.events_trained, accounting.dead_letters) == (300, 20)
    assert digest(read_state(newest(once))) == digest(read_state(newest(again)))
    assert reasons_of(stream)[0] == "item_id is missing"

    # A range of the files is by the events' own times.
    times = {"from_time": str(START_MS + 60_000), "until_time": str(START_MS + 250_000)}
    part = config_of(replace(stream, **times), tmp_path / "part")
    train(0, part)
    accounting = verify_exactly_once(part)
    assert accounting.exactly_once, accounting
    counts = (accounting.events_trained, accounting.events_ignored, accounting.dead_letters)
    assert counts == (190, 110, 20)
    assert _items(part) == 190

    # The same events from a topic make the same histories.
    topic = stream_factory(3)
    produce(topic, whole, rows_per_message=300)
    from_topic = config_of(topic, tmp_path / "topic")
    train(0, from_topic)
    of_files, of_topic = (
        [merged_users(newest(config), p).select(["user_id", "items", "times_ms"]) for p in range(3)]
        for config in (once, from_topic)
    )
    assert of_files == of_topic
