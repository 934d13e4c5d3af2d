"""`freshet evaluate` as a whole: what it writes and prints, how it resumes, what it refuses."""

import csv
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from typer.testing import CliRunner

from cluster.evaluation.grids import grid
from cluster.evaluation.grids.cell import run_cell
from cluster.evaluation.grids.cell_files import CellFiles
from cluster.evaluation.grids.summary import COMPARED
from cluster.evaluation.protocol.data import Tables
from cluster.evaluation.systems.systems import chosen
from deploy.cli import app
from deploy.command.config_loading import load_offline_config
from deploy.command.errors import report
from deploy.command.terminal import Terminal
from deploy.datasets.datasets import DatasetError, load
from deploy.evaluate.report import build_report, print_report
from tests.support.data_tables import random_tables

TINY = [
    "model.dim=8",
    "model.augmented_dim=4",
    "model.uniform_negatives=5",
    "fit.batch_targets=128",
    "fit.passes=2",
    "device=cpu",
]
PRESETS = Path(__file__).parents[4] / "deploy" / "configs"


FIRST_S = int(np.datetime64("2024-01-01", "s").astype(int))
DAY_S = 86_400


@pytest.fixture
def folder(tmp_path):
    """A data set laid out like those that users have."""
    tables = random_tables(first_ms=1000 * FIRST_S)
    data = tmp_path / "circle"
    data.mkdir()
    pq.write_table(tables.interactions, data / "interactions.parquet")
    pq.write_table(tables.items, data / "items.parquet")
    pq.write_table(tables.users, data / "users.parquet")
    return data


@pytest.fixture
def shared_layout(tmp_path):
    """A folder with the columns of shared/data, and its events in order: (user, item, time in s, rating)."""
    rng = np.random.default_rng(3)
    drawn = []
    for user in range(1, 41):
        # Up to three events of a user share a second, as ratings do.
        times = np.sort(rng.integers(0, 20 * DAY_S // 30_000, rng.integers(4, 15)) * 30_000)
        items = 1 + np.minimum(rng.geometric(0.08, len(times)), 40)
        drawn += [
            (user, *rest) for rest in zip(items, times + FIRST_S, rng.integers(1, 6, len(times)), strict=True)
        ]
    columns = [np.array(column, np.int64) for column in zip(*drawn, strict=True)]
    user, item, time_s, rating = columns
    pos = np.arange(len(user)) - np.searchsorted(user, user)
    table = pa.table(
        {
            "user_id": user,
            "item_id": item,
            "timestamp": time_s,
            "category": item % 3,
            "action": pa.array(
                np.array(["buy", "cart", "fav"])[rng.integers(0, 3, len(user))], pa.large_string()
            ),
            "pos": pos.astype(np.int32),
            "rating": rating.astype(np.int8),
        }
    )
    data = tmp_path / "shop"
    data.mkdir()
    # The rows are in no order: `timestamp` and `pos` say it.
    pq.write_table(table.take(rng.permutation(len(user))), data / "interactions.parquet")
    known = np.arange(1, 42)
    catalogue = {
        "item_id": known,
        "category": known % 3,
        "genres": pa.array([("Drama", "Comedy War", "Action")[i % 3] for i in known], pa.large_string()),
        "movie_title": [f"Film {i}" for i in known],
        "release_year": ["1999" for _ in known],
    }
    people = {
        "user_id": np.arange(1, 41),
        "age": 15 + np.arange(40),
        "gender": ["M", "F"] * 20,
        "occupation": ["other", "artist"] * 20,
        "zip_code": ["12345"] * 40,
    }
    pq.write_table(pa.table(catalogue), data / "items.parquet")
    pq.write_table(pa.table(people), data / "users.parquet")
    meta = {"name": "shop", "category_names": ["Drama", "Comedy", "Action"], "terms": "drawn", "sources": []}
    (data / "meta.json").write_text(json.dumps(meta))
    return data, [tuple(row) for row in zip(*(column.tolist() for column in columns), strict=True)]


def _hit_rate_of_popularity(events, cuts):
    """HR@10 and queries by hand; `cuts` are per user the items to count, those left out, and the one to predict."""
    counts = Counter(item for counted, _, _ in cuts.values() for item in counted)
    ranks = []
    for _, seen, target in cuts.values():
        if target is not None:
            others = {item for _, item, _, _ in events} - set(seen) - {target}
            above = sum(counts[item] > counts[target] for item in others)
            ranks.append(above + sum(counts[item] == counts[target] for item in others) / 2)
    return sum(rank < 10 for rank in ranks) / len(ranks), len(ranks)


def _results(folder):
    return json.loads((folder.parent / "out" / "results.json").read_text())


def test_a_folder_laid_out_like_the_shared_data_is_split_at_dates_with_weights_of_actions(shared_layout):
    folder, events = shared_layout
    settings = [
        "protocol.kind=temporal",
        "protocol.validation_from=2024-01-11",
        "protocol.test_from=2024-01-14",
    ]
    settings += ["stream.user_attributes=[age_group,gender]", "wals.factors=4"]
    weights = "stream.action_weights=[buy=1,cart=0.5,fav=0.1]"
    done = _evaluate(folder, "--models", "popularity,wals,epidtn", *settings, weights)
    assert done.exit_code == 0, done.output
    validation_s, test_s = FIRST_S + 10 * DAY_S, FIRST_S + 13 * DAY_S
    cuts = {}
    for user in range(1, 41):
        own = [(item, time) for u, item, time, _ in events if u == user]
        seen = [item for item, time in own if time < test_s]
        later = [item for item, time in own if time >= test_s]
        target = later[0] if seen and later and later[0] not in seen else None
        cuts[user] = ([item for item, time in own if time < validation_s], seen, target)
    hit_rate, queries = _hit_rate_of_popularity(events, cuts)
    written = _results(folder)
    assert written["data"]["name"] == "shop"
    assert (written["data"]["events"], written["data"]["test_queries"]) == (len(events), queries)
    assert written["results"][0]["hr@10"] == pytest.approx(hit_rate)
    assert 0 < hit_rate < 1
    # The weights arrive where they count.
    assert _evaluate(folder, "--models", "popularity,wals", *settings).exit_code == 0
    popularity, wals = _results(folder)["results"]
    assert popularity["hr@10"] == written["results"][0]["hr@10"]
    assert wals["ndcg@10"] != written["results"][1]["ndcg@10"]


def test_low_ratings_of_such_a_folder_are_no_events_to_learn_or_to_predict(shared_layout):
    folder, events = shared_layout
    done = _evaluate(folder, "--models", "popularity,cl_epidtn", "stream.negative_below_value=3")
    assert done.exit_code == 0, done.output
    cuts = {}
    for user in range(1, 41):
        liked = [item for u, item, _, rating in events if u == user and rating >= 3]
        left_out = len(liked) >= 3
        cuts[user] = (liked[:-2] if left_out else liked, liked[:-1], liked[-1] if left_out else None)
    hit_rate, queries = _hit_rate_of_popularity(events, cuts)
    written = _results(folder)
    assert written["data"]["test_queries"] == queries
    assert written["data"]["events"] == sum(rating >= 3 for *_, rating in events) < len(events)
    # What nobody liked is ranked too.
    assert written["data"]["items"] == len({item for _, item, _, _ in events})
    assert written["results"][0]["hr@10"] == pytest.approx(hit_rate)
    assert 0 < hit_rate < 1


def _reported(folder, out):
    """Cells, outcome and what was asked for, of two models that have been run."""
    config = load_offline_config(None, TINY, [PRESETS / "default.yaml"])
    dataset = load(folder)
    tables = Tables(dataset.name, dataset.interactions, dataset.items, dataset.users)
    cells = grid.cells_of(chosen("epidtn,popularity"), [1], config, tables.fingerprint())
    files = CellFiles(out / "cells")
    return cells, grid.run_grid(cells, grid.InProcess(tables), files, lambda event: None), {}


def _evaluate(folder, *arguments, out="out"):
    result = CliRunner().invoke(
        app,
        [
            "evaluate",
            "--data",
            str(folder),
            "--workers",
            "0",
            "--out",
            str(folder.parent / out),
            *arguments,
            *TINY,
        ],
        env={"COLUMNS": "120", "TERM": "dumb"},
    )
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def test_it_prints_a_table_within_120_columns_and_writes_json_csv_and_a_plot(folder):
    done = _evaluate(
        folder,
        "--models",
        "cl_epidtn,dssm,popularity",
        "--seeds",
        "2",
        "--json",
        str(folder.parent / "x.json"),
    )
    assert done.exit_code == 0, done.output
    assert (
        max(len(line) for line in done.output.splitlines() if not line.startswith(("table", "data"))) <= 120
    )
    for word in (
        "CL-EPIDTN",
        "DSSM",
        "Popularity",
        "Recall",
        "NDCG",
        "tail",
        "low act.",
        "gain in",
        "±",
        "circle",
    ):
        assert word in done.output
    assert "…" not in done.output
    out = folder.parent / "out"
    written = json.loads((folder.parent / "x.json").read_text())
    assert written == json.loads((out / "results.json").read_text())
    assert [entry["model"] for entry in written["results"]] == ["cl_epidtn", "dssm", "popularity"]
    for entry in written["results"]:
        for metric in ("hr@10", "hr@50", "recall@10", "recall@50", "ndcg@10"):
            assert 0 <= entry[metric] <= 1
            assert entry[f"{metric}_std"] >= 0
        assert entry["seeds"] == 2
        assert entry["train_s"] > 0
        assert entry["examples_per_s"] > 0
    assert set(written["results"][1]["cl_epidtn_against_it"]) == {*COMPARED}
    with (out / "cells.csv").open() as file:
        cells = list(csv.DictReader(file))
    assert [c["model"] for c in cells] == ["cl_epidtn", "dssm", "popularity"] * 2
    assert [c["seed"] for c in cells] == ["1"] * 3 + ["2"] * 3
    ours = [float(c["hr@10"]) for c in cells if c["model"] == "cl_epidtn"]
    assert written["results"][0]["hr@10"] == pytest.approx(sum(ours) / 2)
    with (out / "results.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 3
    assert (out / "results.png").read_bytes().startswith(b"\x89PNG")
    assert not list(out.rglob(".*"))


def test_the_temporal_protocol_has_several_targets_a_user_so_that_recall_is_no_hit_rate(folder):
    settings = ["protocol.kind=temporal", "protocol.targets=all", "protocol.shuffle_ties=true"]
    settings += ["protocol.validation_from=0.7", "protocol.test_from=0.8"]
    done = _evaluate(folder, "--models", "popularity,markov", *settings)
    assert done.exit_code == 0, done.output
    assert "temporal, ties shuffled" in done.output
    written = json.loads((folder.parent / "out" / "results.json").read_text())
    assert written["protocol"]["kind"] == "temporal"
    assert written["data"]["test_targets"] > written["data"]["test_queries"]
    assert written["results"][0]["hr@10"] != written["results"][0]["recall@10"]


def test_an_interruption_says_how_to_go_on(folder, monkeypatch):
    def interrupted(cell, tables, tell):
        if cell.system == "dssm":
            raise KeyboardInterrupt
        return run_cell(cell, tables, tell)

    monkeypatch.setattr(grid, "run_cell", interrupted)
    done = _evaluate(folder, "--models", "popularity,dssm")
    assert done.exit_code != 0
    assert "interrupted with 1 of 2 cells; the same command resumes from here" in done.output


def test_training_steps_that_were_left_out_are_counted_in_the_report_and_said(folder):
    done = _evaluate(folder, "--models", "dssm,popularity", "fit.learning_rate=1e30", "fit.gradient_clip=0")
    assert done.exit_code == 0, done.output
    dssm, popularity = json.loads((folder.parent / "out" / "results.json").read_text())["results"]
    assert dssm["refused_steps"] > 0
    assert popularity["refused_steps"] == 0
    with (folder.parent / "out" / "cells.csv").open() as file:
        assert [int(cell["refused_steps"]) > 0 for cell in csv.DictReader(file)] == [True, False]
    said = (
        f"training steps left out, because a loss or a gradient was not finite: dssm {dssm['refused_steps']};"
    )
    assert said in " ".join(done.output.split())


def test_times_of_any_type_give_the_same_result(folder):
    events = pq.read_table(folder / "interactions.parquet")
    times_ms = events["timestamp_ms"].to_numpy()
    seconds_us = pa.array(times_ms * 1000).cast(pa.timestamp("us"))
    kinds = {
        "float seconds": ("timestamp", pa.array(times_ms / 1000)),
        "int seconds": ("timestamp", pa.array(times_ms // 1000)),
        **{
            f"timestamp[{u}]": ("timestamp", seconds_us.cast(pa.timestamp(u), safe=False))
            for u in ("s", "ms", "us", "ns")
        },
    }
    results = []
    for kind, (name, column) in kinds.items():
        other = events.drop(["timestamp_ms"]).append_column(name, column)
        pq.write_table(other, folder / "interactions.parquet")
        done = _evaluate(folder, "--models", "popularity,markov", out=kind)
        assert done.exit_code == 0, done.output
        found = json.loads((folder.parent / kind / "results.json").read_text())["results"]
        results.append([(row["model"], row["hr@10"], row["ndcg@10"]) for row in found])
    assert all(result == results[0] for result in results)
    text = events.drop(["timestamp_ms"]).append_column("timestamp", pa.array(["yesterday"] * len(events)))
    pq.write_table(text, folder / "interactions.parquet")
    with pytest.raises(
        DatasetError,
        match=r"interactions\.parquet: column timestamp must hold timestamps, dates or numbers, not string$",
    ):
        _evaluate(folder, "--models", "popularity", out="text")


def test_a_narrow_terminal_gets_fewer_columns_and_is_told_which(folder):
    _evaluate(folder, "--models", "epidtn,popularity")
    folder_of_results = folder.parent / "out"
    narrow = build_report(*_reported(folder, folder_of_results))
    console = Terminal(width=80, record=True, force_terminal=True, file=io.StringIO())
    print_report(console, narrow)
    shown = console.export_text()
    assert max(map(len, shown.splitlines())) <= 80
    assert "…" not in shown
    assert "no room for gain in tail_hr@10, gain in low_activity_hr@10, recall@10, recall@50" in " ".join(
        shown.split()
    )
    console = Terminal(width=160, record=True, force_terminal=True, file=io.StringIO())
    print_report(console, narrow)
    wide = console.export_text()
    assert "no room" not in wide
    assert "low act." in wide


def test_a_second_call_runs_nothing_and_says_the_same(folder, monkeypatch):
    first = _evaluate(folder, "--models", "dssm,popularity")
    monkeypatch.setattr(grid, "run_cell", None)
    second = _evaluate(folder, "--models", "dssm,popularity")
    assert second.exit_code == 0
    assert first.output.endswith(second.output)


def test_a_sweep_changes_one_setting_at_a_time_and_has_a_plot_of_its_own(folder):
    done = _evaluate(
        folder, "--models", "epidtn,popularity", "--sweep", "model.layers=1,2", "--sweep", "model.dropout=0.3"
    )
    assert done.exit_code == 0, done.output
    out = folder.parent / "out"
    results = json.loads((out / "results.json").read_text())["results"]
    assert [entry["sweep"] for entry in results if entry["model"] == "epidtn"] == [
        {"model.layers": 1},
        {"model.layers": 2},
        {"model.dropout": 0.3},
    ]
    assert {path.name for path in out.glob("*.png")} == {"sweep-model.layers.png", "sweep-model.dropout.png"}
    assert "layers=2" in done.output
    assert done.output.count("Popularity  ") == 1
    assert len(list((out / "cells").glob("popularity-*.json"))) == 1


def test_a_search_keeps_its_log_writes_what_was_best_and_is_used_and_resumed(folder, monkeypatch):
    done = _evaluate(folder, "--models", "dssm,popularity", "--trials", "3")
    assert done.exit_code == 0, done.output
    out = folder.parent / "out"
    trials = [json.loads(line) for line in (out / "trials.jsonl").read_text().splitlines()]
    assert [(entry["model"], entry["trial"]) for entry in trials] == [
        ("dssm", 1),
        ("dssm", 2),
        ("dssm", 3),
        ("popularity", 1),
    ]
    # What the arguments say is not searched.
    assert all("model.uniform_negatives" not in entry["settings"] for entry in trials)
    best = max(trials[:3], key=lambda entry: entry["validation_hr@10"])
    tuned = yaml.safe_load((out / "tuned.yaml").read_text())
    assert tuned == {"dssm": best["settings"], "popularity": {}}
    assert (out / "trials.csv").read_text().count("\n") == 5
    written = json.loads((out / "results.json").read_text())
    assert written["tuned"] == tuned
    assert written["trials"] == {"dssm": 3, "popularity": 1}
    monkeypatch.setattr(grid, "run_cell", None)
    assert _evaluate(folder, "--models", "dssm,popularity", "--trials", "3").exit_code == 0
    # The same cells by the file that the search wrote.
    assert _evaluate(folder, "--models", "dssm,popularity", "--tuned", str(out / "tuned.yaml")).exit_code == 0


def test_a_failed_cell_is_told_in_one_line_and_the_status_is_not_0(folder, monkeypatch):
    def fails(cell, tables, tell):
        if cell.system == "dssm":
            raise MemoryError("no room")
        return run_cell(cell, tables, tell)

    monkeypatch.setattr(grid, "run_cell", fails)
    done = _evaluate(folder, "--models", "dssm,popularity")
    assert done.exit_code == 1
    assert "failed: DSSM, seed 1: MemoryError: no room" in done.output
    assert "Popularity" in done.output
    assert json.loads((folder.parent / "out" / "results.json").read_text())["failed"] == [
        {"cell": "DSSM, seed 1", "error": "MemoryError: no room"}
    ]


def test_an_evaluation_that_is_killed_goes_on_with_what_it_had_finished(folder):
    out = folder.parent / "out"
    arguments = [
        "evaluate",
        "--data",
        str(folder),
        "--workers",
        "0",
        "--out",
        str(out),
        "--models",
        "popularity,dssm",
    ]
    settings = [*TINY, "fit.passes=1000"]
    child = subprocess.Popen([sys.executable, "-m", "deploy", *arguments, *settings], stdout=subprocess.PIPE)
    deadline = time.monotonic() + 120
    while not list(out.glob("cells/popularity-*.json")) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    [kept] = out.glob("cells/*.json")
    before = kept.stat().st_mtime_ns
    done = _evaluate(folder, "--models", "popularity,dssm")
    assert done.exit_code == 0
    assert kept.stat().st_mtime_ns == before
    assert "Popularity, seed 1: HR@10" not in done.output
    assert "DSSM, seed 1: HR@10" in done.output


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["--models", "dsm"], 1, "unknown model 'dsm' (did you mean 'dssm'?)"),
        (["--seeds", "0"], 2, "--seeds must be at least 1, got 0"),
        (["--sweep", "model.layers"], 2, "'model.layers' is not a sweep"),
        (["--sweep", "model.layer=1,2"], 2, "did you mean 'model.layers'?"),
        (["--sweep", "model.layers=1,x"], 2, "setting 'model.layers' cannot be 'x'"),
        (["--tuned", "/nowhere.yaml"], 2, "/nowhere.yaml cannot be read"),
        (["protocol.kind=temporal", "protocol.test_from=2100-01-01"], 1, "protocol.test_from"),
        (["protocol.kind=random"], 2, "protocol.kind"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_what_cannot_be_done_is_told_in_one_line_before_anything_is_trained(
    folder, arguments, status, message, capsys
):
    data = ["--data", str(folder)]
    out = folder.parent / "out"
    capsys.readouterr()
    with pytest.raises(Exception) as refused:  # noqa: PT011
        app(["evaluate", *data, "--workers", "0", "--out", str(out), *arguments], standalone_mode=False)
    assert report(refused.value) == status
    [line] = capsys.readouterr().err.splitlines()
    assert message in line
    assert not out.exists()


def test_a_folder_without_interactions_is_refused(tmp_path):
    from deploy.datasets.datasets import DatasetError

    with pytest.raises(DatasetError, match=r"interactions\.parquet"):
        _evaluate(tmp_path)
