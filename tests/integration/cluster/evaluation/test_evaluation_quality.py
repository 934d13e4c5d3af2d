"""Two passes over MovieLens-100k are enough for the model to leave popularity far behind."""

import json

from typer.testing import CliRunner

from deploy.cli import app


def test_the_reference_beats_popularity_by_a_wide_margin(tmp_path):
    done = CliRunner().invoke(
        app,
        [
            "evaluate",
            *("--data", "ml-100k", "--models", "cl_epidtn,popularity", "--workers", "0"),
            *("--out", str(tmp_path / "out"), "--json", str(tmp_path / "result.json")),
            # The file's order within a second is an artifact that can be learnt.
            "protocol.shuffle_ties=true",
            # Small and steep: 20 s of one CPU.
            *("model.dim=32", "model.layers=1", "model.uniform_negatives=250", "model.dropout=0.2"),
            *("fit.passes=2", "fit.batch_targets=1000", "fit.warmup_steps=20"),
            *("fit.learning_rate=0.005", "fit.row_learning_rate=0.01", "device=cpu"),
        ],
    )
    assert done.exit_code == 0, done.output
    ours, popularity = json.loads((tmp_path / "result.json").read_text())["results"]
    assert 0.05 < popularity["hr@10"] < 0.1
    # 1.78, 1.90 and 1.95 times with the seeds 1, 2 and 3.
    assert ours["hr@10"] > 1.6 * popularity["hr@10"]
    assert popularity["cl_epidtn_against_it"]["hr@10"]["p"] < 0.001
