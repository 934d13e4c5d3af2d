"""docs/reference/settings.md, out of the settings dataclasses: `python -m tests.support.settings_page` writes it."""

from __future__ import annotations

from itertools import groupby

from deploy.command.config_loading import Setting, describe_settings
from tests.support.documents import ROOT

PAGE = ROOT / "docs" / "reference" / "settings.md"
_HEAD = """\
<!-- written by `python -m tests.support.settings_page`; a test compares it with the settings dataclasses -->
# Settings

Every setting is a `key=value` argument of every verb, or a key of the YAML file given with `--config`. Arguments take
precedence over the file. `freshet settings` lists the values in effect.
"""


def page() -> str:
    """The whole page."""
    sections = groupby(describe_settings(), key=_section)
    return "\n".join([_HEAD, *(_table(name, list(settings)) for name, settings in sections)])


def _section(setting: Setting) -> str:
    return setting.key.rpartition(".")[0] or "general"


def _table(section: str, settings: list[Setting]) -> str:
    rows = [f"| `{s.key}` | {_code(s.type_name)} | {_code(s.default)} | {_cell(s.help)} |" for s in settings]
    return "\n".join(
        [f"## {section}\n", "| setting | type | default | meaning |", "|---|---|---|---|", *rows, ""]
    )


def _code(value: object) -> str:
    text = _cell(str(value))
    return f"`{text}`" if text else ""


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    PAGE.write_text(page())
