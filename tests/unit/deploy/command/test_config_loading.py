"""Settings: given values are used, and unusable ones are reported in one line that names the key."""

import re

import pytest

from cluster.config import FreshetConfig
from cluster.evaluation.config import OfflineConfig
from deploy.command.config_loading import ConfigError, load_config, load_offline_config
from deploy.command.setting_descriptions import describe_settings


def _refusal(*overrides, file=None):
    with pytest.raises(ConfigError) as refused:
        load_config(file, list(overrides))
    message = str(refused.value)
    assert "\n" not in message
    return message


def _file(tmp_path, text):
    path = tmp_path / "settings.yaml"
    path.write_text(text)
    return path


def test_without_a_source_every_setting_has_its_default():
    assert load_config(None, []) == FreshetConfig()


def test_an_argument_wins_over_the_file_and_a_later_argument_over_an_earlier(tmp_path):
    file = _file(tmp_path, "train: {workers: 3, learning_rate: 2e-3}\nseed: 7\n")
    config = load_config(file, ["train.workers=4", "train.workers=5"])
    assert (config.train.workers, config.train.learning_rate, config.seed) == (5, 0.002, 7)


@pytest.mark.parametrize(
    ("argument", "section", "name", "value"),
    [
        ("train.workers=3", "train", "workers", 3),
        ("train.workers=1..3", "train", "workers", "1..3"),
        ("train.linger_s=1", "train", "linger_s", 1.0),
        ("train.learning_rate=2e-3", "train", "learning_rate", 0.002),
        ("train.bounded=yes", "train", "bounded", True),
        ("index.kind=ivf_flat", "index", "kind", "ivf_flat"),
        ("stream.sasl_mechanism=", "stream", "sasl_mechanism", ""),
        ("stream.bootstrap_servers=a:1,b:2", "stream", "bootstrap_servers", "a:1,b:2"),
        ("stream.user_attributes=[a, b]", "stream", "user_attributes", ["a", "b"]),
        ("stream.user_attributes=[]", "stream", "user_attributes", []),
        ("train={workers: 3}", "train", "workers", 3),
    ],
)
def test_an_argument_is_read_as_its_settings_type(argument, section, name, value):
    read = getattr(getattr(load_config(None, [argument]), section), name)
    assert read == value
    assert type(read) is type(value)


@pytest.mark.parametrize("text", ["on", "0123", "1_000", "2024-01-01", "a: b", "@x", "null", "12:30", "a=b"])
def test_a_text_setting_takes_an_argument_as_it_was_written(text):
    assert load_config(None, [f"storage_path={text}"]).storage_path == text


def test_a_quoted_argument_loses_its_quotes():
    assert load_config(None, ["storage_path='a b'"]).storage_path == "a b"


@pytest.mark.parametrize(
    ("argument", "suggestion"),
    [
        (
            "train.chekpoint_every_s=30",
            "'train.chekpoint_every_s' (did you mean 'train.checkpoint_every_s'?)",
        ),
        ("workers=3", "'workers' (did you mean 'train.workers'?)"),
        ("index=3", "'index' (it is a section: set one of its keys, for example index.kind=...)"),
        ("progressive=", "'progressive' (it is a section"),
        ("zzz=1", "unknown setting 'zzz' in the arguments"),
    ],
)
def test_an_unknown_key_is_refused_with_the_one_that_was_meant(argument, suggestion):
    assert suggestion in _refusal(argument)


@pytest.mark.parametrize(
    ("argument", "old", "new"),
    [
        ("evaluation.top_k=5", "evaluation.top_k", "progressive.top_k"),
        ("evaluation.no_such=5", "evaluation.no_such", "progressive.no_such"),
        ("evaluation={top_k: 5}", "evaluation", "progressive"),
        ("evaluation=", "evaluation", "progressive"),
    ],
)
def test_the_old_name_of_a_section_is_answered_with_the_new_one(argument, old, new):
    assert _refusal(argument) == f"unknown setting '{old}' (it is now called '{new}') in the arguments"


def test_the_old_name_of_a_section_in_a_file_is_answered_with_the_new_one(tmp_path):
    file = _file(tmp_path, "evaluation: {top_k: 5}\n")
    assert _refusal(file=file) == (
        f"unknown setting 'evaluation.top_k' (it is now called 'progressive.top_k') in {file}"
    )


def test_an_unknown_key_in_the_file_names_the_file(tmp_path):
    file = _file(tmp_path, "train:\n  wrokers: 3\n")
    assert _refusal(file=file) == (
        f"unknown setting 'train.wrokers' (did you mean 'train.workers'?) in {file}"
    )


def test_a_key_that_is_a_number_is_unknown_like_any_other(tmp_path):
    assert "unknown setting 'train.1'" in _refusal(file=_file(tmp_path, "train: {1: 2}"))


@pytest.mark.parametrize(
    ("argument", "wanted"),
    [
        ("train.batch_events=many", "Integer"),
        ("train.batch_events=2.5", "Integer"),
        ("train.batch_events=true", "Integer"),
        ("train.batch_events=", "Integer"),
        ("train.workers=2.5", "int, str"),
        ("train.workers=true", "int, str"),
        ("train.workers=null", "needs a value"),
        ("train.learning_rate=fast", "Float"),
        ("train.learning_rate=true", "Float"),
        ("train.learning_rate=nan", "finite"),
        ("train.learning_rate=.inf", "finite"),
        ("train.bounded=maybe", "true or false"),
        ("train.bounded=1", "true or false"),
        ("index.kind=ivf_pq", "['ivf_flat', 'ivf_fp16', 'ivf_sq8', 'ivf_pqfs']"),
        ("stream.user_attributes=a", "list of texts"),
        ("stream.user_attributes=[1, b]", "list of texts"),
        ("stream.user_attributes=[[b]]", "list of texts"),
        ("stream.user_attributes={a: b}", "not a section"),
        ("train.workers={a: 1}", "not a section"),
    ],
)
def test_a_value_of_the_wrong_type_is_refused_with_key_value_and_type(argument, wanted):
    message = _refusal(argument)
    key = argument.partition("=")[0]
    assert message.startswith(f"setting '{key}' cannot be ")
    assert wanted in message


@pytest.mark.parametrize("value", ["on", "0123", "2024-01-01", "5"])
def test_text_in_a_file_that_yaml_reads_as_something_else_must_be_quoted(tmp_path, value):
    assert "put it in quotes" in _refusal(file=_file(tmp_path, f"stream: {{consumer_group: {value}}}"))
    quoted = _file(tmp_path, f"stream: {{consumer_group: '{value}'}}")
    assert load_config(quoted, []).stream.consumer_group == value


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("train.workers=0", "train.workers must be at least 1, got 0"),
        ("train.workers=0..3", "train.workers must be at least 1, got 0..3"),
        ("train.workers=3..1", "train.workers must go from fewest to most, such as 1..3, got 3..1"),
        ("train.workers=many", "train.workers must be a number, or a range such as 1..3, got 'many'"),
        ("train.workers=1..", "train.workers must be a number, or a range such as 1..3, got '1..'"),
        ("train.workers=", "train.workers must be a number, or a range such as 1..3, got ''"),
        ("train.resize_check_s=0", "train.resize_check_s must be positive, got 0.0"),
        ("train.learning_rate=-1", "train.learning_rate must be positive, got -1.0"),
        ("index.recall_target=1.5", "index.recall_target must be at most 1, got 1.5"),
        ("model.heads=7", "model.heads must divide model.dim=64, got 7"),
        ("progressive.sample_fraction=2", "progressive.sample_fraction must be in [0, 1], got 2.0"),
        ("stream.history_length=0", "stream.history_length must be at least 1, got 0"),
        ("stream.user_attributes=[a, a]", "stream.user_attributes must not name an attribute twice"),
    ],
)
def test_a_value_out_of_range_names_setting_and_value(argument, message):
    assert message in _refusal(argument)


@pytest.mark.parametrize("argument", ["train.workers", "=3", "--workers"])
def test_an_argument_without_key_or_value_is_refused_with_an_example(argument):
    assert f"'{argument}' is not a setting; write key=value" in _refusal(argument)


def test_an_argument_that_is_no_yaml_is_refused():
    assert "the value of 'train.workers=[1' is not valid YAML" in _refusal("train.workers=[1")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train: [", "is not valid YAML"),
        ("- a\n- b\n", "must hold a mapping of settings, found list"),
        ("just text", "must hold a mapping of settings, found str"),
    ],
)
def test_a_file_that_holds_no_settings_is_refused_by_its_name(tmp_path, text, message):
    file = _file(tmp_path, text)
    assert f"{file} {message}" in _refusal(file=file)


def test_a_file_that_cannot_be_read_is_refused_by_its_name(tmp_path):
    missing = tmp_path / "none.yaml"
    assert _refusal(file=missing) == f"the settings file {missing} does not exist (option --config)"
    assert f"the settings file {tmp_path} cannot be read" in _refusal(file=tmp_path)
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"\xff\xfe\x00")
    assert f"the settings file {binary} cannot be read" in _refusal(file=binary)


@pytest.mark.parametrize("text", ["", "# nothing yet\n", "train:\n  # workers: 3\n", "train: {}\n"])
def test_a_file_or_section_without_keys_sets_nothing(tmp_path, text):
    assert load_config(_file(tmp_path, text), []) == FreshetConfig()


@pytest.mark.parametrize("given", [["stream.history_length=7"], ["model.history_length=7"]])
def test_model_and_stream_share_one_history_length(given):
    config = load_config(None, given)
    assert (config.stream.history_length, config.model.history_length) == (7, 7)


def test_two_history_lengths_are_refused_also_from_different_sources(tmp_path):
    file = _file(tmp_path, "stream: {history_length: 7}")
    message = _refusal("model.history_length=8", file=file)
    assert message == "model.history_length=8 but stream.history_length=7: set one of them"
    assert load_config(file, ["model.history_length=7"]).model.history_length == 7


def test_a_reference_to_the_environment_is_followed_and_a_broken_one_is_refused(monkeypatch):
    monkeypatch.setenv("FRESHET_TEST_RUNS", "/data/runs")
    assert load_config(None, ["storage_path=${oc.env:FRESHET_TEST_RUNS}/a"]).storage_path == "/data/runs/a"
    for key in ("storage_path", "stream.history_length"):
        assert "nowhere" in _refusal(f"{key}=${{nowhere}}")
        assert key in _refusal(f"{key}=???")


def test_every_setting_is_listed_once_with_its_type_default_and_meaning():
    described = {setting.key: setting for setting in describe_settings()}
    config = OfflineConfig()
    of_evaluations = "progressive", "protocol", "fit", "wals", "popularity"
    for section in ("stream", "model", "train", "table", "index", *of_evaluations, "broker"):
        for name, default in vars(getattr(config, section)).items():
            setting = described.pop(f"{section}.{name}")
            assert setting.default == default
            assert setting.type_name
            assert len(setting.help.split()) >= 2, setting.key
            assert setting.help.count("(") == setting.help.count(")"), setting.key
    assert set(described) == {"device", "precision", "storage_path", "seed"}
    assert all(described[key].help for key in described)


def test_every_listed_setting_can_be_given_its_own_default():
    given = [
        f"{setting.key}={str(setting.default).lower() if isinstance(setting.default, bool) else setting.default}"
        for setting in describe_settings()
    ]
    assert load_config(None, given) == FreshetConfig()


def test_passwords_are_named_by_their_variable_and_never_held(monkeypatch):
    monkeypatch.setenv("FRESHET_TEST_PASSWORD", "hunter2")
    config = load_config(None, ["stream.sasl_password_env=FRESHET_TEST_PASSWORD"])
    assert "hunter2" not in repr(config)
    secret = re.compile("password|secret|token")
    names = [setting.key for setting in describe_settings() if secret.search(setting.key)]
    assert names
    assert all(name.endswith("_env") for name in names)


def test_a_password_behind_a_mistyped_key_is_not_repeated():
    for value in ("hunter2", "[hunter2", "{a: hunter2}"):
        assert "hunter2" not in _refusal(f"stream.sasl_password={value}")


def test_settings_of_an_evaluation_are_checked_and_left_out_of_a_runs(tmp_path):
    file = _file(tmp_path, "fit: {passes: 3}\n")
    config = load_config(file, ["protocol.kind=temporal"])
    assert type(config) is FreshetConfig
    assert not hasattr(config, "fit")
    assert load_offline_config(file, []).fit.passes == 3
    assert "fit.passes must be at least 1" in _refusal("fit.passes=0")
