"""Settings of the local Kafka, apart from the broker: a program that only reads settings imports no Kafka client."""

from dataclasses import dataclass

from streaming.setting import require_declared, setting


@dataclass
class BrokerConfig:
    """The local Kafka of `freshet broker`, the demo and the tests."""

    data_dir: str = setting(
        "runs/broker", "Folder for the topics' logs and the broker's own log; created if it is missing."
    )
    port: int = setting(9092, "TCP port on 127.0.0.1 (0 = any free port).", at_least=0, at_most=65535)
    heap_mib: int = setting(512, "Size of the Java heap in MiB.", at_least=128)
    start_timeout_s: float = setting(60.0, "Maximum time to wait for the broker's first answer.", above=0)

    def __post_init__(self) -> None:
        require_declared("broker", self)
