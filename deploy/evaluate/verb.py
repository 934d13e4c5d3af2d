"""The verb `evaluate`."""

from __future__ import annotations

import typer

from deploy.command.options import taking
from deploy.command.terminal import Terminal
from deploy.evaluate.options import EvaluateOptions

app = typer.Typer()


@app.command(
    epilog="**Example:** `freshet evaluate --data ml-100k --models cl_epidtn,sasrec,popularity --seeds 5`"
)
@taking(EvaluateOptions)
def evaluate(options: EvaluateOptions) -> None:
    """Compare models on a data set at rest: hit rates, significance, time; resumes where it was interrupted.

    Two protocols: `protocol.kind=leave_one_out` (each user's last event is the test) and `protocol.kind=temporal`
    (train before `protocol.validation_from`, test after `protocol.test_from`); with `protocol.walk_forward_days=1` it
    predicts a day, trains on it, and continues with the next, as a stream would. `protocol.shuffle_ties=true` draws the
    order of events with equal times. All items are ranked except those that the user already has.

    Models: cl_epidtn, its ablations epidtn, cltd, cl_dssm; wals, youtube_dnn, dssm, mind, sasrec, sasrec_bce;
    popularity, markov, cooccurrence.

    A sweep changes one setting at a time: `--sweep model.layers=1,2,5 --sweep model.dim=32,64,128`.
    """
    from deploy.evaluate.evaluating import run_evaluation

    raise typer.Exit(run_evaluation(options, Terminal()))
