import math

import pytest

from deploy.screen.progress import HitCurve, Progress, parse_progress


def test_an_empty_or_missing_file_gives_the_defaults():
    assert parse_progress(None) == Progress()
    assert parse_progress({}).state == "starting"
    assert math.isnan(parse_progress({"examples_per_s": None}).examples_per_s)


def test_every_part_of_the_file_is_read(progress_record):
    progress = parse_progress(progress_record())
    assert (progress.step, progress.workers, progress.pids) == (246, 2, (4711, 4712))
    assert progress.index_version == 6
    assert progress.index_versions == 6
    assert progress.checkpoint_step == 240
    assert progress.loss["main"] == 5.5


def test_versions_may_be_a_list_of_names(progress_record):
    index = {"version": "v00000002", "versions": ["v00000001", "v00000002"]}
    assert parse_progress(progress_record(index=index)).index_versions == 2


def test_rates_of_the_second_half_count_only_bins_that_start_there(progress_record):
    curve = parse_progress(progress_record()).progressive
    assert curve.rate(curve.hits, 30_000) == pytest.approx(0.2)
    assert curve.rate(curve.hits) == pytest.approx(0.15)
    assert curve.sample_size(30_000) == 3000
    # A half inside a bin leaves that bin out: it holds events of the first half.
    assert curve.sample_size(30_001) == 2900


def test_a_rate_without_a_sample_is_not_a_number():
    assert math.isnan(HitCurve().rate([]))
    assert math.isnan(HitCurve(sample=[5], hits=[1]).rate([1], 10_000))


def test_points_put_neighbouring_bins_together_by_their_samples():
    curve = HitCurve(sample=[1, 3, 0, 0], hits=[1, 0, 0, 0])
    first, second = curve.points(curve.hits, 2)
    assert first == pytest.approx(0.25)
    assert math.isnan(second)
    assert len(curve.points(curve.hits, 100)) == 4
    assert HitCurve().points([], 10) == []
