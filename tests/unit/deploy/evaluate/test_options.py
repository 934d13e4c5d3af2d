"""Options of `freshet evaluate`, its presets, and how figures and progress are shown."""

import io
import json
import math
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from deploy.cli import app
from deploy.command.config_loading import load_offline_config
from deploy.command.errors import UsageError
from deploy.command.terminal import Terminal
from deploy.evaluate.options import EvaluateOptions, sweep_points
from deploy.evaluate.report import stars
from deploy.evaluate.tuned import read_tuned
from deploy.screen.screen import rate
from tests.support.data_tables import random_tables

PRESETS = Path(__file__).parents[4] / "deploy" / "configs"


def _options(**changes):
    return EvaluateOptions("data", **changes)


def test_values_of_a_sweep_are_read_as_their_setting():
    points = sweep_points(
        _options(
            sweeps=["model.layers=1,5", "model.similarity=dot,cosine", "stream.user_attributes=[a,b],[]"]
        )
    )
    assert points == [
        {"model.layers": 1},
        {"model.layers": 5},
        {"model.similarity": "dot"},
        {"model.similarity": "cosine"},
        {"stream.user_attributes": ["a", "b"]},
        {"stream.user_attributes": []},
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[dssm]", "must hold settings by model"),
        ("dssm: 3", "must hold settings by model"),
        ("dsm: {}", "names 'dsm'"),
        (
            "dssm: {model.dropuot: 0.3}",
            "dssm: unknown setting 'model.dropuot' (did you mean 'model.dropout'?)",
        ),
        ("dssm: {evaluation.top_k: 5}", "'evaluation.top_k' (it is now called 'progressive.top_k')"),
        ("dssm: {model.dropout: 3}", "dssm: model.dropout must be in [0, 1)"),
        ("dssm: {", "cannot be read"),
    ],
)
def test_a_file_of_tuned_settings_is_checked_before_anything_is_trained(tmp_path, text, message):
    path = tmp_path / "tuned.yaml"
    path.write_text(text)
    with pytest.raises(UsageError) as refused:
        read_tuned(_options(tuned=path), load_offline_config(None, []))
    assert message in str(refused.value)
    assert str(path) in str(refused.value)


def test_an_argument_wins_over_what_was_tuned(tmp_path):
    path = tmp_path / "tuned.yaml"
    path.write_text("dssm: {model.dropout: 0.3, model.layers: 1}\nmarkov:\n")
    options = _options(tuned=path, overrides=["model.dropout=0.1"])
    assert read_tuned(options, load_offline_config(None, [])) == {"dssm": {"model.layers": 1}, "markov": {}}


def test_the_paper_preset_says_what_the_paper_says():
    config = load_offline_config(None, [], [PRESETS / "paper.yaml"])
    said = {
        "dim": 128,
        "layers": 5,
        "augmented_dim": 32,
        "dropout": 0.3,
        "similarity": "cosine",  # Eqs. 3 and 13
        "loss": "softmax",  # Eq. 25
        "transformer": True,
        "augmented_vectors": True,
        "user_id_embedding": True,
        "mimic_user_weight": 1.0,
        "mimic_item_weight": 1.0,
        "contrastive_weight": 1.0,
        "contrastive_sequence_weight": 1.0,
        "contrastive_attribute_weight": 1.0,
        "contrastive_item_weight": 1.0,
        "contrastive_every": 1,
        "contrastive_items": "targets",
        "negative_sequence": "older_half",
        "view_dropout": 0.3,
    }
    # What others added is off.
    without = {
        "members": 1,
        "logq_strength": 0.0,
        "uniform_negatives": 0,
        "input_mask_ratio": 0.0,
        "source_items": 0,
        "source_categories": False,
        "state_skip": 0.0,
    }
    # docs/model.md, where the paper is silent.
    silent = {
        "heads": 2,
        "history_length": 50,
        "history_before": "event",
        "history_mask": "past",
        "max_categories": 8,
        "temperature": 0.07,
        "contrastive_temperature": 0.5,
        "sequence_mask_ratio": 0.3,
        "attribute_mask_ratio": 0.3,
        "item_mask_ratio": 0.3,
        "init_std": 0.02,
    }
    unread = {"source_gain", "source_decay"}  # without sources
    assert {k: v for k, v in vars(config.model).items() if k not in unread} == said | without | silent
    fit = config.fit
    assert (fit.batch_targets, fit.row_optimizer, fit.weight_decay) == (32, "adam", 0.0)
    assert (fit.learning_rate, fit.row_learning_rate) == (1e-3, 1e-3)


def test_the_default_preset_has_every_part_of_the_model_on():
    model = load_offline_config(None, [], [PRESETS / "default.yaml"]).model
    assert model.transformer
    assert model.augmented_vectors
    assert min(model.mimic_user_weight, model.mimic_item_weight) > 0
    contrastive = (
        model.contrastive_sequence_weight,
        model.contrastive_attribute_weight,
        model.contrastive_item_weight,
    )
    assert model.contrastive_weight * max(contrastive) > 0


def test_an_evaluation_of_the_paper_preset_trains_the_papers_model_in_a_size_of_its_own(tmp_path):
    tables = random_tables(users=8, events=60)
    for name in ("interactions", "items", "users"):
        pq.write_table(getattr(tables, name), tmp_path / f"{name}.parquet")
    out = tmp_path / "out"
    sizes = ["model.dim=8", "model.augmented_dim=4", "model.layers=1", "fit.passes=1", "device=cpu"]
    done = CliRunner().invoke(
        app,
        f"evaluate --data {tmp_path} --preset paper --models cl_epidtn,epidtn --workers 0 --out {out}".split()
        + sizes,
        env={"COLUMNS": "120", "TERM": "dumb"},
    )
    assert done.exit_code == 0, done.output
    written = json.loads((out / "results.json").read_text())
    assert written["preset"] == "paper"
    assert [entry["model"] for entry in written["results"]] == ["cl_epidtn", "epidtn"]
    assert all(0 <= entry["hr@10"] <= 1 for entry in written["results"])
    paper = load_offline_config(None, sizes, [PRESETS / "paper.yaml"])
    alphas = {}
    for path in (out / "cells").glob("*.json"):
        cell = json.loads(path.read_text())
        used = {key: value for key, value in cell["settings"].items() if key.startswith("model.")}
        alphas[cell["system"]] = used.pop("model.contrastive_weight")
        wanted = {f"model.{key}": value for key, value in vars(paper.model).items()}
        assert used.items() <= wanted.items()
        assert len(used) == len(wanted) - 1
        assert cell["settings"]["fit.batch_targets"] == 32
    assert alphas == {"cl_epidtn": 1.0, "epidtn": 0.0}


def test_a_preset_stands_below_file_and_arguments(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("model: {layers: 3, dim: 16}\n")
    config = load_offline_config(file, ["model.dim=32"], [PRESETS / "paper.yaml"])
    assert (config.model.layers, config.model.dim, config.model.dropout) == (3, 32, 0.3)


@pytest.mark.parametrize("section", ["stream", "model"])
def test_a_history_length_of_the_user_wins_over_a_presets_in_both_sections(tmp_path, section):
    preset = tmp_path / "preset.yaml"
    preset.write_text("model: {history_length: 20}\n")
    config = load_offline_config(None, [], [preset])
    assert (config.model.history_length, config.stream.history_length) == (20, 20)
    config = load_offline_config(None, [f"{section}.history_length=7"], [preset])
    assert (config.model.history_length, config.stream.history_length) == (7, 7)


def test_figures_are_told_in_four_digits_and_p_in_stars():
    assert [rate(value, 4) for value in (0.097, 1.0, 0.0, math.nan)] == [".0970", "1.0000", ".0000", "–"]
    assert [stars(p) for p in (0.5, 0.04, 0.009, 0.0001, math.nan)] == ["", "*", "**", "***", ""]


def test_progress_on_a_terminal_names_cells_passes_and_time_to_go():
    from cluster.evaluation.grids.grid import CellEvent, cell_of
    from cluster.evaluation.systems.fitting import PassReport
    from cluster.evaluation.systems.systems import SYSTEMS
    from deploy.evaluate.progress import EvaluationDisplay, duration  # type: ignore[attr-defined]

    config = load_offline_config(None, ["fit.passes=4"])
    cells = [
        cell_of(SYSTEMS[name], 1, config, "data", point={"model.layers": 2}) for name in ("dssm", "mind")
    ]
    console = Terminal(width=120, record=True, force_terminal=True, file=io.StringIO())
    display = EvaluationDisplay("evaluating", cells, console)
    display.take(CellEvent(cells[0], "started"))
    display.take(CellEvent(cells[0], "pass", report=PassReport(1, 4, 5.25, 0.1234, 0.1234)))
    console.print(display._render())
    shown = console.export_text()
    assert "evaluating: 0 of 2 cells · 1 running" in shown
    assert "to go" in shown
    assert "DSSM, seed 1, model.layers=2" in shown
    assert "pass 1/4  loss 5.250  validation HR@10 .1234" in shown
    walked = PassReport(4, 4, math.nan, 0.0625, 0.1234, stage=3, stages=24)
    display.take(CellEvent(cells[0], "pass", report=walked))
    console.print(display._render())
    assert "walk-forward 3/24  HR@10 .0625" in console.export_text()
    display.take(CellEvent(cells[0], "failed", error="no room"))
    assert display.view.summary(display.view.started).startswith("evaluating: 1 of 2 cells · 1 failed")
    assert [duration(s) for s in (3, 185, 7440)] == ["3 s", "3 min 5 s", "2 h 4 min"]


def test_the_protocol_is_told_in_words():
    from deploy.evaluate.report import EvaluationReport

    def told(**protocol):
        return EvaluationReport([], about={"protocol": protocol}).protocol

    assert told(kind="leave_one_out", shuffle_ties=True) == "leave one out, ties shuffled"
    assert told(kind="temporal", walk_forward_days=0) == "temporal"
    assert told(kind="temporal", walk_forward_days=1) == "temporal, walk-forward by 1 day"
    assert told(kind="temporal", walk_forward_days=7) == "temporal, walk-forward by 7 days"
    walked = told(kind="temporal", walk_forward_days=1, test_at_once=True)
    assert walked == "temporal, walk-forward by 1 day up to the test"
