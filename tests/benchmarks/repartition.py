"""Copying a topic by user, exactly once, against reading it: messages per CPU second.

    python tests/benchmarks/repartition.py [--json FILE] [--rows N] [--runs N] [--encoding arrow]

Both read the same topic of a broker of their own, in alternating runs in one process: the baseline polls and decodes
every message, ours routes each message to its user's partition and writes it in Kafka transactions. CPU seconds are of
all threads of this process; the broker is another.
"""

import statistics
import sys
import tempfile
import uuid
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from streaming.config import StreamConfig
from streaming.kafka.topics import create_topics
from streaming.local_broker.broker import LocalBroker
from streaming.repartitioning.repartitioner import Repartitioner, create_own_topic
from streaming.sources.kafka_source import end_offsets
from tests.benchmarks.ingest import Settings, bare_kafka_python, produce, timed
from tests.benchmarks.support.command import benchmark_parser, finish

REQUIRED_RATIO = 0.05


def main() -> int:
    parser = benchmark_parser(__doc__)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--encoding", choices=("arrow", "json"), default="json")
    arguments = parser.parse_args()
    settings = Settings(rows=arguments.rows, encoding=arguments.encoding, runs=arguments.runs)
    with tempfile.TemporaryDirectory() as folder, LocalBroker(Path(folder) / "kafka") as broker:
        result = measure(StreamConfig(bootstrap_servers=broker.bootstrap_servers), settings)
    return finish(result, arguments.json)


def measure(config: StreamConfig, settings: Settings) -> dict[str, Any]:
    """Alternating runs over a topic that does not exist yet, after one of each that warms up."""
    create_topics(config, partitions=settings.partitions)
    produce(config, settings)
    ends = end_offsets(config, config.interactions_topic)
    bare_kafka_python(config, ends, settings.encoding)
    _copy(config)
    baseline, ours = [], []
    for _ in range(settings.runs):
        baseline.append(timed(lambda: bare_kafka_python(config, ends, settings.encoding)))
        ours.append(timed(lambda: _copy(config)))
    assert {run.rows for run in baseline} == {settings.rows}, "rows were lost"
    assert {run.rows for run in ours} == {sum(ends.values())}, "messages were lost"
    ratios = [b.cpu_s / o.cpu_s for b, o in zip(baseline, ours, strict=True)]
    ratio = statistics.median(ratios)
    return {
        "name": "repartition",
        "baseline": f"bare kafka-python 3: poll and decode each message ({settings.encoding})",
        "ratio": round(ratio, 4),
        "ratios": [round(r, 4) for r in ratios],
        "required_ratio": REQUIRED_RATIO,
        "passed": ratio >= REQUIRED_RATIO,
        "events_per_cpu_s": round(statistics.median(settings.rows / run.cpu_s for run in ours)),
        "events_per_cpu_s_baseline": round(statistics.median(settings.rows / run.cpu_s for run in baseline)),
        "cpu_s": {
            "baseline": [round(run.cpu_s, 3) for run in baseline],
            "ours": [round(run.cpu_s, 3) for run in ours],
        },
        "wall_s": {"ours": [round(run.wall_s, 3) for run in ours]},
        "settings": asdict(settings),
    }


def _copy(config: StreamConfig) -> int:
    """Into a topic of its own; returns the number of messages read."""
    copying = replace(
        config,
        partition_by="repartition",
        repartition_from=config.interactions_topic,
        interactions_topic=f"copy-{uuid.uuid4().hex[:8]}",
    )
    create_own_topic(copying)
    repartitioner = Repartitioner(copying)
    try:
        repartitioner.run_to_end()
    finally:
        repartitioner.close()
    return repartitioner.copied


if __name__ == "__main__":
    sys.exit(main())
