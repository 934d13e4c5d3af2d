"""Settings of the stream: which values are refused, and the arguments of Kafka clients."""

import pickle

import pytest

from streaming.config import StreamConfig, StreamSettingError, client_arguments


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("bootstrap_servers", " "),
        ("interactions_topic", ""),
        ("history_length", 0),
        ("seen_length", 0),
        ("connect_timeout_s", 0.0),
        ("max_categories", -1),
        ("max_message_bytes", 10),
        ("fetch_max_bytes", 2048),
        ("user_attributes", ["age", "age"]),
        ("sasl_mechanism", "PLAIN"),
        ("negative_below_value", -1.0),
        ("negative_below_value", float("inf")),
        ("action_weights", ["buy"]),
        ("action_weights", ["=2"]),
        ("action_weights", ["buy=much"]),
        ("action_weights", ["buy=nan"]),
        ("action_weights", ["buy=0"]),
        ("action_weights", ["buy=1", "buy=2"]),
    ],
)
def test_a_setting_that_cannot_work_is_refused_by_name_and_value(setting, value):
    with pytest.raises(StreamSettingError) as caught:
        StreamConfig(**{setting: value})
    assert f"stream.{setting}" in str(caught.value)
    assert repr(value) in str(caught.value)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_an_action_cannot_be_both_positive_and_negative():
    with pytest.raises(StreamSettingError, match=r"stream\.negative_actions.*\['skip', 'buy'\]"):
        StreamConfig(positive_actions=["buy"], negative_actions=["skip", "buy"])


@pytest.mark.parametrize("kinds", [{"negative_actions": ["skip"]}, {"positive_actions": ["buy"]}])
def test_a_weight_of_an_action_that_is_never_trained_on_is_refused(kinds):
    with pytest.raises(StreamSettingError, match=r"stream\.action_weights.*skip=2"):
        StreamConfig(action_weights=["skip=2"], **kinds)


def test_sasl_needs_a_mechanism():
    with pytest.raises(StreamSettingError, match=r"stream\.sasl_mechanism"):
        StreamConfig(security_protocol="SASL_SSL")


def test_passwords_come_from_the_environment_variables_that_the_settings_name(monkeypatch):
    config = StreamConfig(
        bootstrap_servers="a:1, b:2",
        security_protocol="SASL_SSL",
        sasl_mechanism="SCRAM-SHA-256",
        sasl_username="ann",
        sasl_password_env="BROKER_PASSWORD",
        ssl_cafile="/ca.pem",
    )
    with pytest.raises(StreamSettingError, match=r"stream\.sasl_password_env.*BROKER_PASSWORD.*not set"):
        client_arguments(config)
    monkeypatch.setenv("BROKER_PASSWORD", "secret")
    arguments = client_arguments(config)
    assert arguments["bootstrap_servers"] == ["a:1", "b:2"]
    assert arguments["sasl_plain_password"] == "secret"
    assert arguments["sasl_mechanism"] == "SCRAM-SHA-256"
    assert arguments["ssl_cafile"] == "/ca.pem"
    assert "ssl_keyfile" not in arguments
    assert "secret" not in repr(config)


def test_the_dead_letter_topic_follows_the_interactions_topic_unless_it_is_named():
    assert StreamConfig(interactions_topic="clicks").dead_letters == "clicks.dead-letters"
    assert StreamConfig(dead_letter_topic="bin").dead_letters == "bin"


@pytest.mark.parametrize(
    "servers",
    [
        "localhost",
        "localhost:",
        ":9092",
        "a:1,b",
        "a:1,",
        "a:port",
        "a:0",
        "a:65536",
        "::1:9092",
        "kafka://a:1",
        "a:-1",
    ],
)
def test_a_broker_address_without_a_port_is_refused_with_the_setting(servers):
    with pytest.raises(StreamSettingError, match=r"^stream\.bootstrap_servers must be host:port, or several"):
        StreamConfig(bootstrap_servers=servers)


@pytest.mark.parametrize("servers", ["localhost:9092", "10.0.0.1:1, b.example:65535", "[::1]:9092"])
def test_a_broker_address_is_a_host_and_a_port(servers):
    assert StreamConfig(bootstrap_servers=servers).bootstrap_servers == servers
