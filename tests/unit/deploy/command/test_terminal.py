"""A terminal prints only text, whatever the data contain."""

import io
import json
import logging
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.live import Live
from rich.table import Table

from deploy.command.errors import CommandError, last_line_of, one_line, report
from deploy.command.terminal import Terminal, guard_streams, line, panel, printable, say, say_lines, stacked
from deploy.demo.figures import DemoFigures
from deploy.demo.report import print_report
from deploy.evaluate.report import EvaluationReport
from deploy.evaluate.report import print_report as print_evaluation
from deploy.screen.progress import parse_progress
from deploy.screen.screen import DemoView, plain_line, render
from deploy.verbs.checkpoints import print_difference, print_list, print_verified
from deploy.verbs.dead_letters import print_letters
from deploy.verbs.recommend import print_recommendations
from deploy.verbs.status import print_status

HOSTILE = "[/b][/q][link=https://evil]x[/link] :smile: \x1b[31mred\x1b]8;;https://evil\x1b\\\x9b2J\x07\x00\x7f\u202eeu\u2066\r\n\u2028end"
SEEN = "[/b][/q][link=https://evil]x[/link] :smile: red]8;;https://evil\\eu   end"


def _controls(text):
    return sorted(
        {
            c
            for c in text
            if (ord(c) < 0x20 or 0x7F <= ord(c) < 0xA0 or c in "\u202e\u2066\u2028") and c != "\n"
        }
    )


@pytest.fixture
def screen():
    """A terminal that is one, so that what rich would emit to a real one is seen."""
    return Terminal(file=io.StringIO(), width=200, force_terminal=True, color_system=None)


def _shown(screen):
    text = screen.file.getvalue()
    assert _controls(text) == []
    return text


def test_a_text_loses_what_a_terminal_would_obey_and_becomes_one_line():
    assert printable(HOSTILE) == SEEN
    assert (
        printable("Amélie 天気の子 \U0001f468\u200d\U0001f469 [1999]")
        == "Amélie 天気の子 \U0001f468\u200d\U0001f469 [1999]"
    )
    assert printable("a\ud800b") == "a\ufffdb"
    assert printable(None) == "None"


def test_every_string_given_to_a_terminal_is_data(screen):
    table = Table(HOSTILE, title=HOSTILE, caption=HOSTILE)
    table.add_row(HOSTILE)
    for shown in (
        HOSTILE,
        table,
        panel(HOSTILE, HOSTILE),
        line(HOSTILE, (HOSTILE, "bold")),
        stacked([HOSTILE]),
    ):
        screen.print(shown)
    assert _shown(screen).count(SEEN) == 10


def test_lines_of_a_cell_are_only_ours(screen):
    screen.print(stacked(["one\ntwo", "three"]))
    assert _shown(screen) == "one two\nthree\n"


ENTRY = {
    "user_id": HOSTILE,
    "watched_last": [HOSTILE],
    "items": [{"title": HOSTILE, "item_id": 1, "score": 1.0}],
}
LETTERS = {
    "letters": 1,
    "replayed": 0,
    "topic": HOSTILE,
    "reasons": [
        {
            "reason": HOSTILE,
            "code": HOSTILE,
            "remedy": HOSTILE,
            "count": 1,
            "samples": [{"key": '["[/q]"]', "value": {HOSTILE: HOSTILE}}],
        }
    ],
}
DIFFERENCE = {
    "identical": False,
    "counters": {HOSTILE: [HOSTILE, HOSTILE]},
    "settings": {HOSTILE: [HOSTILE, 1]},
    "positions": {},
    "rows": {HOSTILE: {"added": 1, "removed": 1, "changed": 1, "largest_change": 0.1}},
    "users": {"added": 1, "removed": 1, "changed": 1},
    "towers": {HOSTILE: HOSTILE},
}
STATUS = {
    "storage_path": HOSTILE,
    "progress": {"time_s": 1.0, "state": HOSTILE, "error": HOSTILE},
    "time": HOSTILE,
    "age_s": 1.0,
    "checkpoints": [{"name": HOSTILE}],
    "index_versions": [{"name": HOSTILE, "nprobe": HOSTILE}],
    "index_current": HOSTILE,
    "lag_messages": None,
    "lag_events": None,
    "broker": HOSTILE,
}
BAD_FILE = {"name": HOSTILE, "bytes": 1, "problem": HOSTILE}
EVALUATION = EvaluationReport([], errors={HOSTILE: HOSTILE}, files={"table": [Path(HOSTILE)]})
VIEW = DemoView(
    HOSTILE,
    HOSTILE,
    messages=[HOSTILE],
    progress=parse_progress({"index": {"version": HOSTILE, "nprobe": HOSTILE}}),
)


@pytest.mark.parametrize(
    "show",
    [
        lambda screen: print_recommendations(screen, ENTRY),
        lambda screen: print_report(screen, DemoFigures(broker=HOSTILE, run_dir=HOSTILE, problems=[HOSTILE])),
        lambda screen: print_letters(screen, LETTERS),
        lambda screen: print_list(screen, [{"name": HOSTILE, "error": HOSTILE}]),
        lambda screen: print_verified(
            screen,
            [{"name": HOSTILE, "whole": False, "files": [BAD_FILE], "problem": HOSTILE}],
        ),
        lambda screen: print_difference(screen, DIFFERENCE),
        lambda screen: print_status(screen, STATUS),
        lambda screen: print_evaluation(screen, EVALUATION),
        lambda screen: screen.print(render(VIEW)),
        lambda screen: screen.print(plain_line(VIEW)),
    ],
)
def test_every_screen_shows_hostile_fields_as_they_are(screen, show):
    show(screen)
    assert "[/q]" in _shown(screen)


def test_errors_and_the_logs_of_children_are_one_clean_line(tmp_path, capsys):
    assert _controls(one_line(ValueError(HOSTILE))) == []
    log = tmp_path / "log"
    log.write_text(f"first\n{HOSTILE}")
    assert _controls(last_line_of(log)) == []
    assert report(CommandError(HOSTILE)) == 1
    assert report(KeyError(HOSTILE)) == 1  # a bug: with its traceback
    say(HOSTILE)
    say_lines(f"a {HOSTILE}\n")
    out, err = capsys.readouterr()
    assert _controls(out + err) == []
    assert err.splitlines()[0] == "freshet: error: " + " ".join(SEEN.split())


def test_whatever_else_writes_to_the_streams_is_text(capsys):
    with guard_streams(["train"]):
        print(HOSTILE, end="")
        print(HOSTILE, file=sys.stderr)
        sys.stdout.writelines([HOSTILE])
        logging.getLogger("anybody").warning("%s", HOSTILE)
        assert sys.stdout.isatty() is False
    out, err = capsys.readouterr()
    assert _controls(out + err) == []
    assert "red" in err
    with guard_streams(["--help"]):
        print("\x1b[1mbold")
    assert capsys.readouterr().out == "\x1b[1mbold\n"


def test_a_terminals_own_colours_pass_the_guarded_streams(capsys):
    with guard_streams(["train"]):
        screen = Terminal(force_terminal=True, color_system="standard")
        screen.print(f"x{HOSTILE}", style="bold")
        with Live(line("live"), console=screen, auto_refresh=False):
            print(f"y{HOSTILE}")
    out = capsys.readouterr().out
    assert "\x1b[1mx" in out
    assert "\x1b]8" not in out  # no link, though rich would make one of what is printed beside its panels
    assert "\u202e" not in out


def test_a_hostile_command_line_is_told_as_it_is(tmp_path):
    """`python -m deploy`, as a user runs it."""
    progress = {"state": HOSTILE, "step": 1, "time_s": 1.0}
    (tmp_path / "progress.json").write_text(json.dumps(progress))
    command = [
        "status",
        f"storage_path={tmp_path}",
        "stream.bootstrap_servers=127.0.0.1:1",
        "stream.connect_timeout_s=1",
    ]
    for arguments, status in (
        (command, 0),
        (["train", f"{HOSTILE.replace(chr(0), '')}=1"], 2),
        (["[/b]"], 2),
    ):
        done = subprocess.run(
            [sys.executable, "-m", "deploy", *arguments], capture_output=True, text=True, check=False
        )
        assert (done.returncode, _controls(done.stdout + done.stderr)) == (status, [])
        assert "[/" in done.stdout + done.stderr


def test_the_linter_refuses_other_ways_to_a_terminal(tmp_path):
    source = tmp_path / "deploy" / "x.py"
    source.parent.mkdir()
    source.write_text(
        '"""X."""\nimport sys\n\nimport typer\nfrom rich.console import Console\nfrom rich.panel import Panel\n'
        'from rich.text import Text\n\nprint(Console, Panel, Text)\ntyper.echo("")\nsys.stdout.write("")\n'
    )
    config = Path(__file__).parents[4] / "pyproject.toml"
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "ruff",
            "check",
            "--config",
            str(config),
            "--output-format",
            "json",
            str(source),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    found = json.loads(done.stdout)
    assert {entry["location"]["row"] for entry in found if entry["code"] in ("TID251", "T201")} == {
        5,
        6,
        7,
        9,
        10,
        11,
    }


def test_titles_of_an_index_are_recommended_as_they_are(screen):
    items = [SimpleNamespace(item_id=1, title="Alien [/b] [bold]3", score=0.5)]
    entry = {"user_id": 1, "watched_last": [], "items": [{"title": i.title, "score": i.score} for i in items]}
    print_recommendations(screen, entry)
    assert "Alien [/b] [bold]3" in _shown(screen)
