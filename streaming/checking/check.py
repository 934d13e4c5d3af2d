"""Checks the topics of a stream, or a folder of Parquet files, before anything is trained."""

from dataclasses import dataclass
from pathlib import Path

import orjson

from streaming.catalogue.parquet import ParquetCatalogue, has_catalogue
from streaming.checking.judging import Problem, problems_of
from streaming.checking.profile import Profile, catalogue_profile, decoded_profile, events_profile
from streaming.checking.sample import sample_of
from streaming.codecs.schemas.reader import Kind
from streaming.config import StreamConfig
from streaming.events.position import Position, RowPlace
from streaming.histories.id_texts import KnownTexts
from streaming.kafka.consumer import TopicMissing
from streaming.sources.parquet_source import ParquetSource

_OBJECTS = 200


@dataclass(frozen=True)
class Checked:
    """The result of a check.

    Attributes:
        profiles: of the events, and of items and users as far as they exist.
        problems: those that stop training first.
    """

    profiles: list[Profile]
    problems: list[Problem]

    @property
    def trains(self) -> bool:
        """Whether training would work."""
        return not any(problem.stops for problem in self.problems)


def check_topics(config: StreamConfig, most: int) -> Checked:
    """Check the last messages of each topic.

    Args:
        config: the stream.
        most: about how many messages of each topic.
    Raises:
        BrokerUnavailable: no broker answered.
    """
    profiles, missing = [], []
    topics: tuple[tuple[Kind, str], ...] = (
        ("events", config.interactions_topic),
        ("items", config.items_topic),
        ("users", config.users_topic),
    )
    for kind, topic in topics:
        try:
            sample = sample_of(config, topic, kind, most)
        except TopicMissing as error:
            name = "interactions" if kind == "events" else kind
            missing.append(Problem(topic, str(error), f"create it, or set stream.{name}_topic", True))
            continue
        events = kind == "events"
        profiles.append(events_profile(config, sample) if events else catalogue_profile(config, sample, kind))
    return Checked(profiles, missing + problems_of(config, profiles))


def check_files(config: StreamConfig, most: int) -> Checked:
    """Check the first rows of the files that `stream.parquet` names, and all of items and users beside them.

    Raises:
        ParquetUnusable: there is no file, or one lacks columns of an event.
    """
    partitions = range(config.parquet_partitions)
    source = ParquetSource(config, partitions, {p: Position(0, 0) for p in partitions}, texts=KnownTexts())
    decoded = source.take(dict.fromkeys(partitions, max(1, most // len(partitions))))
    rows = decoded.rows.slice(0, _OBJECTS).select(["offset", "row"]).to_pylist()
    places = [RowPlace(0, row["offset"], row["row"]) for row in rows]
    places += [RowPlace(0, letter.offset, letter.row) for letter in decoded.dead[: _OBJECTS - len(places)]]
    objects = [orjson.loads(value) for value in source.originals(places).values()]
    source.close()
    events = decoded_profile(config, Path(config.parquet).name or config.parquet, decoded, objects)
    profiles = [events]
    if has_catalogue(config.parquet):
        profiles += _catalogue_of_files(config)
    return Checked(profiles, problems_of(config, profiles))


def _catalogue_of_files(config: StreamConfig) -> list[Profile]:
    files = ParquetCatalogue(config, KnownTexts())
    update = files.read_to_end()
    found = []
    for kind, table in (("items", update.items), ("users", update.users)):
        name = f"{kind}.parquet"
        dead = [letter for letter in files.dead_letters if letter.topic == name]
        if not table.num_rows + len(dead):
            continue
        profile = Profile(name, kind, table.num_rows + len(dead), table.num_rows + len(dead), table.num_rows)
        profile.count(dead)
        found.append(profile)
    return found
