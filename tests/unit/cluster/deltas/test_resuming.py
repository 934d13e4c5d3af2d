"""After a resume: deltas of the live version go on from what an earlier process left, if it reached far enough."""

import numpy as np
import pytest

from cluster.collectives import Collectives
from cluster.deltas import adopting
from cluster.deltas.adopting import Restored
from cluster.deltas.publisher import DeltaPublisher
from cluster.deltas.snapshot import RunChanges
from cluster.observability.delta_figures import DeltaFigures
from tests.support.unit_runs import CPU, small_run, train_steps
from tests.unit.cluster.deltas.test_delta_publisher import Followed, item_record, require_as_run, update_of

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def followed(tmp_path):
    return Followed(tmp_path)


def resumed(followed):
    """The same run as a new process resumes it from the newest checkpoint."""
    config = followed.config
    followed.run = small_run(followed.saved)
    followed.run.config = config
    followed.figures = DeltaFigures()
    followed.deltas = DeltaPublisher(Collectives(), config, CPU, figures=followed.figures)
    restored = Restored(followed.saved.location, followed.run.step)
    followed.deltas.attach(followed.run.table, followed.run.catalogue, restored)
    return followed


def step_and_turn(followed):
    train_steps(followed.run, 1)
    followed.turn()


def test_a_version_of_the_restored_checkpoint_gets_its_next_delta_at_once(followed):
    resumed(followed).turn()
    step_and_turn(followed)
    assert followed.chain.names() == ["d00000001"]
    require_as_run(followed, among=followed.chain.open("d00000001").items()[0])


@pytest.mark.parametrize("checkpoints", [0, 1])
def test_deltas_that_reach_beyond_the_restored_checkpoint_are_continued(followed, checkpoints):
    followed.turn()
    step_and_turn(followed)
    for _ in range(checkpoints):
        followed.checkpoint()
    for _ in range(2):
        followed.run.catalogue.add_items(np.array([900 + followed.run.step]))
        step_and_turn(followed)
    before = followed.chain.names()
    assert len(before) == 3
    resumed(followed).turn()
    assert followed.deltas.take_refresh() == ""
    followed.turn()  # nothing was trained since: the rows of the checkpoint are sent again
    [newest] = followed.chain.names()[3:]
    assert followed.chain.open(newest).manifest["rows"] > 0
    items = followed.chain.open(newest).items()[0]
    side, vectors = followed.follow()
    tables, ids = followed.run.table.keys_of(followed.run.table.rows())
    np.testing.assert_array_equal(
        side.rows.rows_of(tables, ids).numpy(), followed.run.table.rows_of(tables, ids).detach().numpy()
    )
    assert set(followed.run.catalogue.item_ids.tolist()) <= set(vectors)
    assert items.shape[0] > 0
    step_and_turn(followed)
    assert len(followed.chain.names()) == 5
    assert followed.deltas._writer._committer._meter.items == len(
        {item for delta in followed.chain.after(0) for item in delta.items()[0].tolist()}
    )


def test_records_that_are_read_between_the_resume_and_the_first_step_are_in_the_next_delta(followed):
    resumed(followed).apply(update_of(items=item_record(902, [3, 4])))
    followed.turn()
    followed.turn()
    side, vectors = followed.follow()
    assert side.catalogue.titles(np.array([902])) == ["title 902"]
    assert 902 in vectors


@pytest.mark.parametrize("why", ["not far enough", "rows left", "settings", "too many", "no deltas"])
def test_deltas_that_cannot_be_continued_are_left_and_a_full_refresh_is_asked_for(followed, monkeypatch, why):
    if why == "rows left":
        take = RunChanges.take
        monkeypatch.setattr(RunChanges, "take", lambda self: (setattr(self, "_most_rows", 5), take(self))[1])
    if why != "no deltas":
        followed.turn()
        step_and_turn(followed)
    followed.checkpoint()
    if why in ("rows left", "settings", "too many"):
        step_and_turn(followed)
    if why == "settings":
        followed.config.model.init_std *= 2
    if why == "too many":
        monkeypatch.setattr(adopting, "_MOST_BYTES", 10)
    before = followed.chain.names()
    resumed(followed).turn()
    assert followed.deltas.take_refresh().startswith(
        {
            "settings": "v00000001 is of another run",
            "too many": "v00000001 has more than 0 MiB",
            "no deltas": "v00000001 is of ",
        }.get(why, "the deltas of v00000001 do not reach step")
    )
    step_and_turn(followed)
    assert followed.chain.names() == before


def test_a_damaged_delta_is_not_continued(followed):
    followed.turn()
    step_and_turn(followed)
    [path] = (followed.store.root / "deltas" / "v00000001" / "d00000001").glob("changes-*")
    path.write_bytes(path.read_bytes()[:-1])
    resumed(followed).turn()
    assert "delta d00000001 of index version v00000001 is damaged" in followed.deltas.take_refresh()
