"""What one step of the stream may ask of the device: budgets that go down, never up.

A launch takes a few microseconds whatever it computes, a copy from pageable memory stops the host, and so does a wait.
The aim for a step with validation is 600 launches, 4 copies to the device and 2 waits.
"""

from tests.device_runs import config_of, train_and_score
from tests.unit_runs import open_run

WITH_VALIDATION = {"launches": 2100, "copies_to": 3, "copies_back": 1, "waits": 1}
WITHOUT = {"launches": 1955, "copies_to": 1, "copies_back": 0, "waits": 1}


def _counted(gpu, sample_fraction):
    config = config_of("two layers", dropout=0.1)
    config.evaluation.sample_fraction = sample_fraction
    run = open_run(config, device=gpu.device)
    train_and_score(run, 3)  # rows, towers and optimizer state are there by then
    with gpu.measured() as counts:
        train_and_score(run, 1)
    return counts


def _hold(counts, budget):
    where = "\n".join(f"{n} {place}" for place, n in sorted(counts.places.items()))
    found = counts.figures()
    assert found["launches"] <= budget["launches"], found
    for kind in ("copies_to", "copies_back", "waits"):
        assert found[kind] <= budget[kind], f"more {kind} than before: {found}\n{where}"
        assert found[kind] >= budget[kind], f"fewer {kind}: lower the budget to {found}"


def test_a_step_with_validation(gpu):
    _hold(_counted(gpu, 0.5), WITH_VALIDATION)


def test_a_step_without_validation(gpu):
    _hold(_counted(gpu, 0.0), WITHOUT)
