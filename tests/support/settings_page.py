"""docs/reference/settings.md, out of the settings dataclasses: `python -m tests.support.settings_page` writes it."""

from __future__ import annotations

from deploy.command.setting_descriptions import Section, Setting, describe_sections, shown
from tests.support.documents import ROOT

PAGE = ROOT / "docs" / "reference" / "settings.md"
_HEAD = """\
<!-- written by `python -m tests.support.settings_page`; a test compares it with the settings dataclasses -->
# Settings

Every setting is a `key=value` argument of every verb, or a key of the YAML file given with `--config`: in the file,
`train: {workers: 3}` is `train.workers=3`. Arguments take precedence over the file. `freshet settings` shows the values
in effect, `freshet settings stream` those of one section. Names that end in `_s` are durations in seconds.
"""


def page() -> str:
    """The whole page."""
    return "\n".join([_HEAD, *map(_table, describe_sections())])


def _table(section: Section) -> str:
    heads = [f"## {section.name}\n", f"{section.purpose}\n"]
    return "\n".join(
        [
            *heads,
            "| setting | type | default | bounds | meaning |",
            "|---|---|---|---|---|",
            *map(_row, section.settings),
            "",
        ]
    )


def _row(setting: Setting) -> str:
    types = ", ".join(f"`{name}`" for name in setting.type_name.split(" | "))
    cells = [f"`{setting.key}`", types, f"`{shown(setting.default)}`", setting.bounds, setting.help]
    return f"| {' | '.join(cell.replace('|', chr(92) + '|').replace('<', '&lt;') for cell in cells)} |"


if __name__ == "__main__":
    PAGE.write_text(page())
