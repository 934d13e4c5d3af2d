"""`freshet settings` can be read at any width, searched in a pipe, and read by programs."""

import io
import json
from operator import attrgetter

import pytest
from typer.testing import CliRunner

from deploy.cli import app
from deploy.command.config_loading import ConfigError, load_offline_config
from deploy.command.setting_descriptions import describe_sections, describe_settings
from deploy.command.terminal import Terminal
from deploy.verbs.settings import chosen_sections
from deploy.verbs.settings_screen import FIRST, print_overview, print_sections

KEYS = [setting.key for setting in describe_settings()]


def _values(*overrides):
    config = load_offline_config(None, list(overrides))
    return {key: attrgetter(key)(config) for key in KEYS}


def _screen(draw, width):
    console = Terminal(file=io.StringIO(), width=width, force_terminal=False)
    draw(console)
    text = console.file.getvalue()
    assert max(map(len, text.splitlines())) <= width
    return text


def _piped(*arguments):
    result = CliRunner().invoke(app, ["settings", *arguments])
    assert result.exit_code == 0, result.output
    return result.output.splitlines()


@pytest.mark.parametrize("width", [80, 120])
def test_the_overview_shows_what_comes_first_what_was_changed_and_the_sections(width):
    sections, values = describe_sections(), _values("table.admit_after=2", "train.workers=5")
    text = _screen(lambda console: print_overview(console, sections, values), width)
    first = [key for keys in FIRST.values() for key in keys]
    assert [key for key in first if key not in text] == []
    changed = text.split("Also changed")[1].split("Sections")[0]
    assert "table.admit_after" in changed
    assert "train.workers" not in changed  # it is among the first, with its value
    assert [section.name for section in sections if section.purpose.split()[0] not in text] == []


def test_without_changes_nothing_is_said_to_be_changed():
    text = _screen(lambda console: print_overview(console, describe_sections(), _values()), 80)
    assert "Also changed" not in text


def test_what_comes_first_are_settings_that_there_are():
    assert {key for keys in FIRST.values() for key in keys} <= set(KEYS)


@pytest.mark.parametrize("width", [80, 120])
def test_a_section_shows_values_types_bounds_and_the_whole_help(width):
    sections, values = chosen_sections(["table"]), _values("table.max_rows=9")
    text = _screen(lambda console: print_sections(console, sections, values), width)
    assert "table.max_rows = 9  int, ≥ 0, default 0" in text
    assert "table.evict = recency  recency | frequency" in text
    flat = " ".join(text.split())
    for setting in sections[0].settings:
        assert setting.help in flat
    assert "stream." not in text


def test_in_a_pipe_every_setting_is_one_line_with_its_value_and_meaning():
    lines = _piped("train.workers=3")
    assert [line.partition("=")[0] for line in lines] == KEYS
    assert all(" # " in line for line in lines)
    [workers] = [line for line in lines if line.startswith("train.workers=")]
    assert workers.startswith("train.workers=3 ")


def test_sections_and_settings_can_be_chosen(tmp_path):
    lines = _piped("broker", "train.workers", "--json", str(tmp_path / "s.json"))
    keys = [line.partition("=")[0] for line in lines]
    assert keys == [
        "train.workers",
        "broker.data_dir",
        "broker.port",
        "broker.heap_mib",
        "broker.start_timeout_s",
    ]
    entries = json.loads((tmp_path / "s.json").read_text())
    assert [entry["key"] for entry in entries] == keys
    assert entries[2] == {
        "key": "broker.port",
        "type_name": "int",
        "default": 9092,
        "bounds": "[0, 65535]",
        "help": "TCP port on 127.0.0.1 (0 = any free port).",
        "value": 9092,
    }


def test_all_is_every_section():
    assert _piped("all") == _piped()


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("strem", "did you mean 'stream'?"),
        ("train.worker", "did you mean 'train.workers'?"),
        ("evaluation", "progressive"),
    ],
)
def test_a_section_that_there_is_not_is_answered_with_the_one_that_was_meant(name, hint):
    with pytest.raises(ConfigError, match=f"unknown section or setting '{name}'") as refused:
        chosen_sections([name])
    assert hint in str(refused.value)


def test_help_is_whole_sentences():
    for setting in describe_settings():
        assert setting.help.endswith((".", ")")), setting.key
        assert not setting.help.startswith(" "), setting.key
        assert "  " not in setting.help, setting.key
