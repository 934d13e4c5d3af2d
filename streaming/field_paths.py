"""Paths of fields in another producer's records, as settings name them: `ours=theirs`, nested by dots.

A dot that is part of a name is written `\\.`; a single dot is the record itself.
"""

import re
from collections.abc import Collection, Sequence

Path = tuple[str, ...]
_SEPARATOR = re.compile(r"(?<!\\)\.")


def paths_of(entries: Sequence[str]) -> dict[str, Path]:
    """`ours=theirs` entries as the path of each field, for example `user_id=visitor.id` as `("visitor", "id")`."""
    pairs = [entry.partition("=") for entry in entries]
    return {ours.strip(): _path(theirs.strip()) for ours, _, theirs in pairs}


def text_of_path(path: Path) -> str:
    """A path as it is written in a setting."""
    return ".".join(name.replace(".", r"\.") for name in path) or "."


def problem_of_paths(entries: Sequence[str], known: Collection[str]) -> str:
    """What `ours=theirs` entries must do, to be put after "must"; empty if they do.

    Args:
        entries: of a setting.
        known: names that may stand before the equals sign.
    """
    names = [entry.partition("=")[0].strip() for entry in entries]
    rule = f"be ours=theirs each, for example user_id=visitor.id, with ours one of {', '.join(known)}"
    if any("=" not in entry or "" in _path(entry.partition("=")[2].strip()) for entry in entries):
        return rule
    if set(names) - set(known):
        return rule
    return "name no field twice" if len(set(names)) < len(names) else ""


def _path(text: str) -> Path:
    if text == ".":
        return ()
    return tuple(name.replace(r"\.", ".") for name in _SEPARATOR.split(text))
