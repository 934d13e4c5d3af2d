"""Runs across a range that retention has removed: every message was read or is counted as skipped."""

from dataclasses import replace

import pytest
import torch
from kafka import KafkaAdminClient, TopicPartition

from cluster.audit.exactly_once import verify_exactly_once
from cluster.collectives import Collectives
from cluster.training.worker import Worker
from streaming.sources.kafka_source import PositionLost, end_offsets
from tests.support.ranks import run_on_ranks
from tests.support.worker_runs import START_MS, config_of, events, newest, produce, send_raw, train, users_of


def _offsets(config, at=0):
    """Where each partition was read up to, by a checkpoint."""
    return {int(p): place[at] for p, place in newest(config).manifest["positions"].items()}


def _remove(stream, before):
    """As retention would: nothing before these offsets is in the log any more."""
    with KafkaAdminClient(bootstrap_servers=stream.bootstrap_servers) as admin:
        admin.delete_records({TopicPartition(stream.interactions_topic, p): at for p, at in before.items()})


def _json(partition, n, **fields):
    user = users_of(partition, 2)[0]
    event = {"user_id": user, "item_id": 7, "timestamp_ms": START_MS + n * 1000}
    event["event_id"] = f"{fields.get('action')} {n}"
    return {"value": event | fields, "partition": partition}


def _of_every_kind(first):
    """Messages of one row each, in both partitions: usable, ignored, disliked, twice, late, and no event at all."""
    rows = [
        _json(p, first + n, **fields)
        for n in range(0, 40, 2)
        for p in (0, 1)
        for fields in ({"action": "like"}, {"action": "look"}, {"action": "skip"})
    ]
    return [
        *rows,
        *rows[-4:],
        *({"value": b"{broken", "partition": p} for p in (0, 1, 1)),
        *(_json(p, first - 1000, action="like") for p in (0, 1)),
    ]


def _settings(stream_factory, **more):
    return stream_factory(
        2,
        positive_actions=["like"],
        negative_actions=["skip"],
        duplicate_window=100,
        max_late_s=500.0,
        **more,
    )


@pytest.mark.parametrize("choice", ["earliest", "latest"])
def test_a_run_over_a_lost_range_accounts_for_every_offset_of_the_topic(stream_factory, tmp_path, choice):
    stream = _settings(stream_factory)
    config = config_of(stream, tmp_path, stop_after_rows=100)
    send_raw(stream, _of_every_kind(2000))
    send_raw(stream, _of_every_kind(4000))
    train(0, config)
    stopped = _offsets(config)
    assert verify_exactly_once(config).events_lost > 0  # what is still to be read
    _remove(stream, {0: stopped[0] + 2})
    send_raw(stream, _of_every_kind(6000))
    on = replace(config, train=replace(config.train, stop_after_rows=0))
    with pytest.raises(PositionLost, match=r"stream\.lost_position"):
        train(0, on)
    on = replace(on, stream=replace(stream, lost_position=choice))
    ends = end_offsets(stream, stream.interactions_topic)
    progress = run_on_ranks(train, 2, on)[0][0]
    accounting = verify_exactly_once(on)
    passed_over = 2 if choice == "earliest" else ends[0] - stopped[0]
    assert progress["messages_skipped"] == accounting.messages_skipped == passed_over
    assert (
        accounting.rows_read + accounting.messages_skipped == sum(ends.values()) == sum(_offsets(on).values())
    )
    assert accounting.exactly_once, accounting
    kinds = ("events_trained", "events_negative", "events_ignored", "events_duplicate", "dead_letters")
    assert all(getattr(accounting, kind) > 0 for kind in kinds)
    assert accounting.dead_letters - accounting.dead_letters_before_gaps == accounting.dead_letters_in_topic

    # What comes later is proved as ever, also by a run that does not meet the gap again.
    send_raw(stream, _of_every_kind(8000))
    train(0, on)
    accounting = verify_exactly_once(on)
    assert accounting.exactly_once, accounting
    ends = end_offsets(stream, stream.interactions_topic)
    assert accounting.rows_read + passed_over == sum(ends.values())


def test_what_retention_removes_after_it_was_used_is_no_doubled_event_but_cannot_be_proved_any_more(
    stream_factory, tmp_path
):
    stream = stream_factory(2)
    produce(stream, events(200), rows_per_message=1)
    _remove(stream, {0: 10})
    config = config_of(stream, tmp_path)
    train(0, config)
    accounting = verify_exactly_once(config)
    assert accounting.exactly_once, accounting
    assert accounting.events_trained == 190
    assert newest(config).manifest["stream"]["origin"] == {"0": 10}
    _remove(stream, {0: 30, 1: 5})
    accounting = verify_exactly_once(config)
    assert accounting.messages_removed == 25
    assert (accounting.events_lost, accounting.events_doubled) == (0, 0)
    assert not accounting.exactly_once


def test_a_log_that_is_trimmed_while_a_run_reads_it_accounts_for_every_offset(stream_factory, tmp_path):
    stream = stream_factory(
        1, lost_position="earliest", buffered_rows_per_partition=500, max_message_bytes=16_384
    )
    produce(stream, events(15_000), rows_per_message=500)
    config = config_of(stream, tmp_path, batch_events=500, checkpoint_every_s=1e-6)
    trimmed = []

    def trim(progress):
        if not trimmed and progress["events"] >= 1000:
            trimmed.append(_remove(stream, {0: 25}))

    Worker(config, Collectives(), torch.device("cpu"), on_checkpoint=trim).train()
    accounting = verify_exactly_once(config)
    assert accounting.exactly_once, accounting
    assert 0 < accounting.messages_skipped < 25
    messages = end_offsets(stream, stream.interactions_topic)[0]
    assert accounting.rows_read + accounting.messages_skipped * 15_000 / messages == 15_000
