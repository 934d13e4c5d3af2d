import pytest

from retrieval.config import IndexConfig


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("kind", "hnsw"),
        ("device", "tpu"),
        ("nlist", -1),
        ("nprobe", -1),
        ("warm_start_iterations", -1),
        ("recall_k", 0),
        ("versions_to_keep", 0),
        ("build_iterations", 0),
        ("max_imbalance", 0.5),
        ("recall_target", 1.01),
        ("min_recall", 0.98),
        ("min_recall", float("nan")),
        ("min_coverage", 1.5),
        ("min_overlap", -0.1),
        ("max_probe_fraction", 0.0),
        ("max_probe_fraction", 1.1),
    ],
)
def test_a_value_that_cannot_work_is_refused_by_its_setting_and_itself(name, value):
    with pytest.raises(ValueError, match=rf"index\.{name} must .*got {value!r}"):
        IndexConfig(**{name: value})


def test_a_gate_above_the_target_is_allowed_where_nprobe_is_fixed():
    assert IndexConfig(nprobe=8, min_recall=0.99).min_recall == 0.99
