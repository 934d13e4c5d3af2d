"""Whether what training reads can be reached, asked before workers start."""

from streaming.catalogue.parquet import has_catalogue
from streaming.config import StreamConfig
from streaming.kafka.consumer import partitions_of
from streaming.kafka.outage import patiently
from streaming.kafka.topics import BrokerUnavailable
from streaming.sources.parquet_source import ITEMS_FILE, USERS_FILE, ParquetSource


def require_inputs(config: StreamConfig) -> None:
    """Check that there are events, and items and users where files hold only events; waits for an unreachable broker.

    Raises:
        ParquetUnusable: `stream.parquet` names no files that can be read.
        BrokerUnavailable: no broker has answered at `stream.bootstrap_servers` for `stream.broker_patience_s`.
        TopicMissing: a topic does not exist.
    """
    if not config.parquet:
        patiently(config, lambda: partitions_of(config, config.interactions_topic))
        return
    ParquetSource(config, [], {})
    if not has_catalogue(config.parquet):
        patiently(config, lambda: _require_catalogue_topics(config))


def _require_catalogue_topics(config: StreamConfig) -> None:
    try:
        for topic in (config.items_topic, config.users_topic):
            partitions_of(config, topic)
    except BrokerUnavailable as error:
        raise BrokerUnavailable(
            f"{error} Items and users are read from topics, because neither {ITEMS_FILE} nor {USERS_FILE} is beside "
            f"{config.parquet} (setting: stream.parquet)."
        ) from error
