from pathlib import Path

import pytest

from deploy.command.config_loading import load_config

CONFIGS = sorted((Path(__file__).parents[4] / "deploy" / "configs").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_a_settings_file_that_is_shipped_loads_and_changes_something(path):
    assert load_config(path, []) != load_config(None, [])


def test_the_cluster_settings_name_the_password_by_its_variable_only():
    [path] = [path for path in CONFIGS if path.name == "cluster.yaml"]
    config = load_config(path, ["train.workers=2"])
    assert config.stream.sasl_password_env == "KAFKA_PASSWORD"
    assert (config.train.workers, config.device) == (2, "cuda")
