"""`freshet train --from … --until …` are settings of the stream."""

import pytest
from typer.testing import CliRunner

from deploy.cli import app
from streaming.config import StreamConfig, StreamSettingError


def test_the_options_of_a_range_reach_the_settings(monkeypatch, tmp_path):
    seen = []
    monkeypatch.setattr(
        "deploy.verbs.train.run_train", lambda config, **options: seen.append(config.stream) or {}
    )
    options = [
        "--from",
        "2026-01-31T06:00:00Z",
        "--until",
        "1769900000000",
        "--event-time",
        "--parquet",
        str(tmp_path),
    ]
    result = CliRunner().invoke(app, ["train", *options])
    assert result.exit_code == 0, result.output
    (stream,) = seen
    assert (stream.from_ms, stream.until_ms) == (1_769_839_200_000, 1_769_900_000_000)
    assert (stream.time_axis, stream.parquet) == ("event", str(tmp_path))


@pytest.mark.parametrize(
    ("times", "told"),
    [
        ({"from_time": "soon"}, "stream.from_time must be a time"),
        ({"from_time": "9", "until_time": "8"}, "until_time must be after"),
    ],
)
def test_a_range_that_makes_no_sense_is_refused(times, told):
    with pytest.raises(StreamSettingError, match=told):
        StreamConfig(**times)
