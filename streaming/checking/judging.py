"""Problems of checked topics, each with the setting to change, and whether training would work."""

from collections.abc import Sequence
from dataclasses import dataclass

from streaming.checking.fields import guess, paths_in, unit_of
from streaming.checking.profile import Profile
from streaming.config import StreamConfig
from streaming.events.faults import FAULTS
from streaming.events.schema import CATEGORIES, ITEM_ID, TIMESTAMP_MS, TITLE, USER_ID
from streaming.field_paths import paths_of

_SETTING = {"events": "stream.fields", "items": "stream.item_fields", "users": "stream.user_fields"}
_REQUIRED = {"events": (USER_ID, ITEM_ID, TIMESTAMP_MS), "items": (ITEM_ID,), "users": (USER_ID,)}
_OPTIONAL = {"events": (), "items": (TITLE, CATEGORIES), "users": ()}
# A larger share of unusable events is no accident of single messages.
_MOST_UNUSABLE = 0.05


@dataclass(frozen=True)
class Problem:
    """Something to change.

    Attributes:
        where: the topic or file.
        what: in one sentence, with figures.
        change: the setting to change, or what the producer must do.
        stops: whether training would not work.
    """

    where: str
    what: str
    change: str
    stops: bool


def problems_of(config: StreamConfig, profiles: Sequence[Profile]) -> list[Problem]:
    """All problems, those that stop training first."""
    found = [problem for profile in profiles for problem in _of_profile(config, profile)]
    return sorted(found, key=lambda problem: not problem.stops)


def _of_profile(config: StreamConfig, profile: Profile) -> list[Problem]:
    is_events = profile.kind == "events"
    if profile.messages == 0:
        what = "it is empty" + ("" if is_events else f": nothing is known of {profile.kind} but their ids")
        return [Problem(profile.name, what, f"send {profile.kind} to it", is_events)]
    found = [_of_fault(config, profile, code, count) for code, count in profile.faults.items()]
    found += _of_fields(config, profile)
    if is_events:
        found += _of_times(config, profile) + _of_actions(profile)
    return found


def _of_fault(config: StreamConfig, profile: Profile, code: str, count: int) -> Problem:
    share, fault = count / max(1, profile.rows), FAULTS[code]
    what = f"{count:,} of {profile.rows:,} ({share:.1%}): {code}, {fault.meaning}"
    if code in profile.examples:
        what += f", for example: {profile.examples[code]}"
    change = fault.remedy
    if code == "wrong_partition" and (keys := profile.facts.get("keys")):
        change = _partitioner(keys, profile.messages) or change
    return Problem(profile.name, what, change, profile.kind == "events" and share > _MOST_UNUSABLE)


def _partitioner(keys: dict[str, int], messages: int) -> str:
    if keys["with_key"] < messages:
        return f"{messages - keys['with_key']:,} messages have no key: key them by the user id"
    if keys["as_crc32"] == keys["with_key"]:
        return "the producer partitions by CRC32, librdkafka's default: set its partitioner=murmur2_random"
    if keys["as_murmur2"] == keys["with_key"]:
        return "messages have another key than the user id: key them by the user id"
    return ""


def _of_fields(config: StreamConfig, profile: Profile) -> list[Problem]:
    """Fields that nothing holds, with a guess at what may be meant."""
    have = {line["read_as"] for line in profile.fields}
    setting, found = _SETTING[profile.kind], []
    for name in (*_REQUIRED[profile.kind], *_OPTIONAL[profile.kind]):
        candidate = "" if name in have else guess(name, profile.objects)
        if name not in have and profile.objects and (candidate or name in _REQUIRED[profile.kind]):
            change = f"{setting}=[{name}={candidate or '…'}]"
            what = f"no record has {name}" + (f"; {candidate} may be meant" if candidate else "")
            found.append(
                Problem(
                    profile.name, what, change, name in _REQUIRED[profile.kind] and profile.kind == "events"
                )
            )
    return found


def _of_times(config: StreamConfig, profile: Profile) -> list[Problem]:
    mapped = paths_of(config.fields)
    values = paths_in(profile.objects).get(mapped.get(TIMESTAMP_MS, (TIMESTAMP_MS,)), [])
    unit = unit_of(values)
    if not unit or unit == config.timestamp_unit:
        return []
    reads_texts = unit == "iso8601" and (
        config.fields or config.default_action or config.timestamp_unit != "ms"
    )
    if reads_texts:
        return []
    what = f"times look like {unit}, for example {values[0]!r}, but are read as {config.timestamp_unit}"
    return [Problem(profile.name, what, f"stream.timestamp_unit={unit}", True)]


def _of_actions(profile: Profile) -> list[Problem]:
    facts = profile.facts
    found = []
    if profile.usable and not facts["positive"]:
        what = f"no event is a positive (actions: {', '.join(facts['actions'])})"
        found.append(Problem(profile.name, what, "stream.positive_actions", True))
    if not profile.usable:
        found.append(Problem(profile.name, "no event can be used", "see the other lines", True))
    elif facts["items"] < 2 or facts["users"] < 2:
        what = f"the sample has {facts['users']:,} users and {facts['items']:,} items"
        found.append(Problem(profile.name, what, "stream.fields: are these the right ids?", False))
    return found
