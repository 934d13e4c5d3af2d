"""A run continues from a checkpoint with other user attributes: their state follows their names."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from cluster.audit.state import read_state
from cluster.checkpoints.attribute_change import AttributeChange
from cluster.checkpoints.checkpoint import CheckpointStore
from cluster.checkpoints.manifest import CheckpointError
from cluster.collectives import Collectives
from cluster.training.state.worker_state import checkpointer_of
from model.features import attribute_table
from tests.support.checkpointing import save_checkpoint
from tests.support.state_digests import digests
from tests.support.unit_runs import encode_users, open_run, small_config, train_steps

BEFORE, NOW = ["gender", "age"], ["country", "age", "job", "gender"]
MODELS = {
    "as it is": {},
    "members": {"members": 2, "heads": 1},
    "no augmented vectors": {"augmented_vectors": False},
    "no user id": {"user_id_embedding": False},
}


pytestmark = pytest.mark.usefixtures("one_thread")


def _config(names, **model):
    config = small_config(**model)
    return replace(config, stream=replace(config.stream, user_attributes=names))


def _trained(store, names=BEFORE, **model):
    run = open_run(_config(names, **model))
    train_steps(run, 4)
    return run, save_checkpoint(run, store, Collectives())


def _reading(run):
    """The weights that read attributes and their moments, by name, and how wide a block of their columns is."""
    width = run.config.model.dim // run.config.model.members
    for name, weight in run.model.named_parameters():
        if name.endswith(("attributes.combine.0.weight", "attributes.augment.0.weight")):
            state = run.train_step.optimizer.state.get(weight, {})
            for part, tensor in {"weight": weight.detach(), **state}.items():
                if tensor.dim() == 2:
                    yield f"{name} {part}", tensor, width


def _blocks(run, tensor, width):
    """Columns by attribute, and the rest in one piece."""
    names = run.config.stream.user_attributes
    ahead = (1 + run.config.model.user_id_embedding) * width
    blocks = {n: tensor[:, ahead + k * width : ahead + (k + 1) * width] for k, n in enumerate(names)}
    rest = torch.cat([tensor[:, :ahead], tensor[:, ahead + len(names) * width :]], dim=1)
    return blocks | {"": rest}


def _rows(run, name):
    """Every number of the rows of an attribute, by id."""
    table = attribute_table(run.config.stream.user_attributes.index(name))
    tables, ids = run.table.keys_of(run.table.rows())
    mine = run.table.rows()[tables == table]
    parts = [run.table.values_CD, *run.table.state.values()]
    numbers = zip(*(p[torch.from_numpy(mine)].tolist() for p in parts), strict=True)
    return dict(zip(ids[tables == table].tolist(), numbers, strict=True))


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_columns_of_kept_attributes_are_the_checkpoints_and_a_new_ones_are_a_fresh_models(store, model):
    run, checkpoint = _trained(store, **model)
    resumed, untrained = open_run(_config(NOW, **model), checkpoint), open_run(_config(NOW, **model))
    fresh = {name: tensor for name, tensor, _ in _reading(untrained)}
    found, known = list(_reading(resumed)), list(_reading(run))
    assert len(found) == len(known) == 3 * len(fresh) > 0
    for (name, tensor, width), (same, earlier, _) in zip(found, known, strict=True):
        assert name == same
        blocks, saved = _blocks(resumed, tensor, width), _blocks(run, earlier, width)
        for kept in ("", "gender", "age"):
            assert torch.equal(blocks[kept], saved[kept])
        for new in ("country", "job"):
            made = _blocks(untrained, fresh[name], width)[new] if name in fresh else 0 * blocks[new]
            assert torch.equal(blocks[new], made)


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_while_a_new_attribute_is_unknown_for_all_queries_are_those_of_the_checkpoint(store, model):
    run, checkpoint = _trained(store, **model)
    resumed = open_run(_config(NOW, **model), checkpoint)
    users = run.users.users()
    assert users.shape[0] > 10
    np.testing.assert_allclose(encode_users(resumed, users), encode_users(run, users), rtol=0, atol=1e-6)


def test_users_keep_the_values_of_kept_attributes_and_the_others_are_unknown(store):
    run, checkpoint = _trained(store)
    users = np.arange(1, 31)
    gender_U, age_U = run.catalogue.user_attributes(users).T
    found = open_run(_config(NOW), checkpoint).catalogue.user_attributes(users)
    assert gender_U.all()
    assert np.array_equal(found, np.stack([0 * age_U, age_U, 0 * age_U, gender_U], axis=1))


def test_rows_of_attributes_follow_their_names_and_those_of_a_dropped_one_are_gone(store):
    run, checkpoint = _trained(store)
    resumed = open_run(_config(NOW), checkpoint)
    assert _rows(resumed, "age") == _rows(run, "age")
    assert _rows(resumed, "gender") == _rows(run, "gender")
    assert _rows(resumed, "country") == _rows(resumed, "job") == {}
    fewer = open_run(_config(["age"]), checkpoint)
    assert _rows(fewer, "age") == _rows(run, "age") != {}
    assert len(fewer.table) == len(run.table) - len(_rows(run, "gender"))


def test_the_log_and_the_run_say_in_one_line_what_starts_fresh_and_what_is_dropped(store, caplog):
    _, checkpoint = _trained(store)
    run = open_run(_config(["age", "country"]), checkpoint)
    assert run.notice == "user attributes: country new, so it starts fresh; gender dropped"
    assert caplog.text.count(f"{checkpoint.location}: {run.notice}\n") == 1
    assert open_run(_config(BEFORE), checkpoint).notice == ""
    assert open_run(_config(BEFORE[::-1]), checkpoint).notice == ""


def test_a_run_goes_on_from_its_first_checkpoint_with_new_attributes_as_if_it_had_not_stopped(store):
    _, checkpoint = _trained(store, dropout=0.3)
    run = open_run(_config(NOW, dropout=0.3), checkpoint)
    checkpointer = checkpointer_of(run, store, Collectives(), checkpoint)
    train_steps(run, 2)
    kinds = [checkpointer.finish(run.step).manifest["kind"]]
    train_steps(run, 2)
    kinds.append((last := checkpointer.finish(run.step)).manifest["kind"])
    assert kinds == ["full", "delta"]
    train_steps(run, 2)
    straight = digests(read_state(checkpointer.finish(run.step)))
    resumed = open_run(_config(NOW, dropout=0.3), last)
    again = checkpointer_of(resumed, store, Collectives(), last)
    train_steps(resumed, 2)
    assert digests(read_state(again.finish(resumed.step))) == straight


def test_a_new_run_may_start_from_a_checkpoint_of_other_attributes(store):
    run, checkpoint = _trained(store)
    started = open_run(_config(["age", "country"]), start=checkpoint)
    assert started.notice.endswith("country new, so it starts fresh; gender dropped")
    assert _rows(started, "age") == _rows(run, "age")
    train_steps(started, 2)


def test_what_was_dropped_and_comes_back_starts_fresh(store, tmp_path):
    _, checkpoint = _trained(store)
    without = open_run(_config(["age"]), checkpoint)
    own = save_checkpoint(without, CheckpointStore(tmp_path / "other"), Collectives())
    again = open_run(_config(BEFORE), own)
    assert again.notice == "user attributes: gender new, so it starts fresh"
    assert _rows(again, "gender") == {}
    assert not again.catalogue.user_attributes(np.arange(1, 31))[:, 0].any()


@pytest.mark.parametrize("sizes", [{"dim": 16}, {"augmented_dim": 8}, {"user_id_embedding": False}], ids=str)
def test_other_sizes_are_refused_in_one_line_also_with_new_attributes(store, sizes):
    _, checkpoint = _trained(store)
    for names in (BEFORE, NOW):
        with pytest.raises(
            CheckpointError, match=r"has shape .* but the settings `model\.\*` ask"
        ) as refused:
            open_run(_config(names, **sizes), checkpoint)
        assert "\n" not in str(refused.value)


def test_settings_that_say_nothing_of_attributes_are_those_of_now():
    assert not AttributeChange.since({"config": {}}, ["age"]).changed
    assert not AttributeChange.since({}, []).changed
