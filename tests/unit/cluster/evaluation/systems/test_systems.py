"""Every named system can be created, trained and queried."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from cluster.evaluation.config import OfflineConfig
from cluster.evaluation.grids.cell import Cell
from cluster.evaluation.measuring.ranking import rank
from cluster.evaluation.protocol.data import prepare
from cluster.evaluation.systems.fitting import FitPlan, fit
from cluster.evaluation.systems.overrides import OverrideError, leaves, with_settings
from cluster.evaluation.systems.systems import (
    REFERENCE,
    SYSTEMS,
    UnknownSystem,
    chosen,
    create,
    require_packages,
)
from tests.support.data_tables import random_tables
from tests.support.training_batches import Run, to_batch

TINY = with_settings(
    OfflineConfig(),
    {
        "model.dim": 8,
        "model.augmented_dim": 4,
        "model.uniform_negatives": 5,
        "fit.batch_targets": 64,
        "fit.warmup_steps": 2,
        "fit.passes": 2,
        "wals.factors": 4,
        "wals.iterations": 2,
        "device": "cpu",
    },
)
DATA = prepare(random_tables(), TINY)


def _fitted(system, seed=1):
    config = with_settings(system.settings_of(TINY, {}, {}), {"seed": seed})
    recommender = create(system, config, DATA.catalogue, DATA.item_ids, torch.device("cpu"))
    plan = FitPlan.of(config)
    plan = replace(plan, batches=replace(plan.batches, mask_all=True), exclude_seen=True)
    fitted = fit(recommender, DATA.split, DATA.item_ids, plan)
    ranking = rank(
        recommender, DATA.interactions, DATA.split.test, DATA.item_ids, window=50, exclude_seen=True
    )
    return recommender, fitted, ranking


@pytest.mark.parametrize("name", SYSTEMS)
def test_every_system_trains_and_ranks_and_the_same_seed_gives_the_same(name):
    system = SYSTEMS[name]
    recommender, fitted, ranking = _fitted(system)
    assert len(fitted.validation) == (2 if system.trained else 1)
    assert fitted.examples_per_s > 0
    assert np.isfinite(ranking.rank_G).all()
    assert ((ranking.rank_G >= 0) & (ranking.rank_G < len(DATA.item_ids))).all()
    vectors = recommender.encode_items(DATA.item_ids)
    values = vectors.data if hasattr(vectors, "tocsr") else vectors
    assert np.isfinite(np.asarray(values)).all()
    assert _fitted(system)[2].rank_G.tolist() == ranking.rank_G.tolist()


@pytest.mark.parametrize("name", SYSTEMS)
def test_what_a_system_says_of_the_seed_is_true(name):
    system = SYSTEMS[name]
    one, two = (_fitted(system, seed)[2].rank_G.tolist() for seed in (1, 2))
    assert (one != two) == system.depends_on_seed


def test_ablations_are_the_reference_with_settings_that_nothing_changes():
    tuned = {"model.contrastive_weight": 0.3, "model.augmented_vectors": True, "model.transformer": True}
    found = {
        name: SYSTEMS[name].settings_of(TINY, tuned, {"model.contrastive_weight": 0.4}).model
        for name in (REFERENCE, "epidtn", "cltd", "cl_dssm")
    }
    switches = {name: (m.contrastive_weight, m.augmented_vectors, m.transformer) for name, m in found.items()}
    assert switches == {
        REFERENCE: (0.4, True, True),
        "epidtn": (0.0, True, True),
        "cltd": (0.4, False, True),
        "cl_dssm": (0.4, True, False),
    }


def test_cl_dssm_has_augmented_vectors_only_where_a_search_or_a_sweep_asks_for_them():
    """The configured value, which is that of the reference, does not."""
    system, asked = SYSTEMS["cl_dssm"], {"model.augmented_vectors": True}
    with_them = with_settings(TINY, asked)
    makes = {
        "plain": system.settings_of(with_them, {}, {}),
        "tuned": system.settings_of(TINY, asked, {}),
        "swept": system.settings_of(TINY, {}, asked),
    }
    assert {how: c.model.augmented_vectors for how, c in makes.items()} == {
        "plain": False,
        "tuned": True,
        "swept": True,
    }
    sizes = {}
    for how, config in makes.items():
        recommender = create(system, config, DATA.catalogue, DATA.item_ids, torch.device("cpu"))
        assert not config.model.transformer
        sizes[how] = sum(parameter.numel() for parameter in recommender.model.parameters())  # type: ignore[attr-defined]
    assert sizes["swept"] == sizes["tuned"] > sizes["plain"]
    # Cells keep their names: the same settings have the same one, however they came about.
    off = {"model.augmented_vectors": False}
    keys = {how: Cell("cl_dssm", 1, config, "x").key for how, config in makes.items()}
    assert keys["plain"] == Cell("cl_dssm", 1, system.settings_of(with_them, off, off), "x").key
    assert keys["plain"] != keys["swept"] == keys["tuned"]


def test_a_baseline_has_none_of_what_only_the_reference_has_unless_it_is_tuned():
    plain = SYSTEMS["sasrec"].settings_of(TINY, {}, {}).model
    assert (plain.source_items, plain.contrastive_weight, plain.input_mask_ratio) == (0, 0.0, 0.0)
    assert not plain.augmented_vectors
    tuned = SYSTEMS["sasrec"].settings_of(TINY, {"model.input_mask_ratio": 0.2}, {}).model
    assert tuned.input_mask_ratio == 0.2


def test_counted_systems_depend_on_no_model_setting_and_trained_ones_do():
    assert not SYSTEMS["popularity"].influences("model.dim")
    assert not SYSTEMS["popularity"].influences("wals.factors")
    assert SYSTEMS["popularity"].influences("popularity.half_life_days")
    assert SYSTEMS["popularity"].influences("protocol.shuffle_ties")
    assert SYSTEMS["popularity"].influences("stream.negative_actions")
    assert SYSTEMS["wals"].influences("wals.factors")
    assert not SYSTEMS["wals"].influences("model.dim")
    assert SYSTEMS["dssm"].influences("model.dim")
    assert not SYSTEMS["dssm"].influences("train.workers")


def test_names_are_chosen_in_order_once_and_all_means_all():
    assert [system.name for system in chosen("popularity, dssm,popularity")] == ["popularity", "dssm"]
    assert [system.name for system in chosen("all")] == list(SYSTEMS)


@pytest.mark.parametrize(
    ("text", "message"),
    [("dsm", "unknown model 'dsm' (did you mean 'dssm'?)"), ("x", "cl_epidtn, epidtn"), ("", "no model")],
)
def test_an_unknown_name_is_told_with_the_known_ones(text, message):
    with pytest.raises(UnknownSystem) as refused:
        chosen(text)
    assert message in str(refused.value)
    assert "--models" in str(refused.value)


def test_a_missing_package_is_told_by_its_extra_before_anything_is_trained():
    missing = replace(SYSTEMS["wals"], packages=("no_such_package",))
    with pytest.raises(ImportError, match=r"freshet\[evaluation\]"):
        require_packages([missing])


def test_settings_by_key_are_applied_together_and_checked_by_their_section():
    config = with_settings(
        OfflineConfig(), {"model.dim": 6, "model.heads": 3, "seed": 5, "fit.learning_rate": 1}
    )
    assert (config.model.dim, config.model.heads, config.seed, config.fit.learning_rate) == (6, 3, 5, 1.0)
    assert isinstance(config.fit.learning_rate, float)
    assert OfflineConfig().model.dim != 6
    with pytest.raises(ValueError, match=r"model\.heads must divide"):
        with_settings(OfflineConfig(), {"model.dim": 7})


def test_one_history_length_sets_the_other():
    config = with_settings(OfflineConfig(), {"model.history_length": 7})
    assert (config.model.history_length, config.stream.history_length) == (7, 7)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("model.dropuot", 0.1, "did you mean 'model.dropout'?"),
        ("model", 1, "unknown setting 'model'"),
        ("model.dim", 1.5, "setting 'model.dim' cannot be 1.5"),
        ("model.dim", True, "setting 'model.dim' cannot be True"),
        ("model.similarity", 3, "it is a str"),
    ],
)
def test_a_wrong_setting_is_refused_by_its_key(key, value, message):
    with pytest.raises(OverrideError) as refused:
        with_settings(OfflineConfig(), {key: value})
    assert message in str(refused.value)


def test_every_leaf_has_its_dotted_key():
    keys = dict(leaves(OfflineConfig()))
    assert keys["model.dim"] == OfflineConfig().model.dim
    assert {"seed", "device", "wals.factors", "fit.passes", "protocol.kind"} <= set(keys)


def test_a_step_that_is_refused_is_left_out_with_a_warning(caplog):
    system = SYSTEMS["epidtn"]
    config = system.settings_of(TINY, {}, {})
    recommender = create(system, config, DATA.catalogue, DATA.item_ids, torch.device("cpu"))
    terms = recommender.train_on(
        to_batch([Run(1, [1, 2], [3, 4], attributes=(1, 1, 1), weights=[3e38, 3e38])])
    )
    assert not np.isfinite(terms["total"])
    assert "step 0: a training step was refused" in caplog.text
    assert np.isfinite(
        recommender.train_on(to_batch([Run(1, [1, 2], [3, 4], attributes=(1, 1, 1))]))["total"]
    )
