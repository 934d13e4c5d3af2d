import io
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
from rich.cells import cell_len

from deploy.command.errors import UsageError
from deploy.command.terminal import Terminal
from deploy.demo.figures import DemoFigures
from deploy.demo.report import print_report
from deploy.verbs.recommend import history_entry, parse_history, print_recommendations, user_entry


class FakeRecommender:
    def answer(self, user_id=None, history=None, k=10):
        items = [
            SimpleNamespace(item_id=50, title="Star Wars (1977)", score=0.91),
            SimpleNamespace(item_id=9, title="", score=0.5),
        ]
        return SimpleNamespace(version="v00000003", delta=12, items=items[:k])

    def history_titles(self, user_id, n=5):
        return ["Fargo (1996)", "Heat (1995)"][:n]


def test_a_users_entry_has_titles_and_what_they_watched_last():
    entry = user_entry(FakeRecommender(), 42, 2)
    assert entry["watched_last"] == ["Fargo (1996)", "Heat (1995)"]
    assert entry["items"][0] == {"item_id": 50, "title": "Star Wars (1977)", "score": 0.91}
    assert entry["items"][1]["title"] == "item 9"
    assert (entry["version"], entry["delta"]) == ("v00000003", 12)


def test_a_history_entry_names_its_newest_items_first():
    entry = history_entry(FakeRecommender(), [1, 2, 3, 4], 1)
    assert entry["watched_last"] == ["item 4", "item 3", "item 2"]
    assert len(entry["items"]) == 1
    out = io.StringIO()
    print_recommendations(Terminal(file=out, width=80), entry)
    assert "for this history" in out.getvalue()


def test_a_history_is_a_list_of_item_ids_numbers_or_texts_as_the_stream_reads_them():
    assert parse_history(" 50,181 ,sku-7,007,") == [50, 181, "sku-7", "007"]
    assert parse_history("") == []
    with pytest.raises(UsageError, match=r"--history has '\\udcff', which is not an id"):
        parse_history("50,\udcff")


def test_recommendations_are_printed_by_title():
    out = io.StringIO()
    print_recommendations(Terminal(file=out, width=80), user_entry(FakeRecommender(), 42, 2))
    text = out.getvalue()
    assert "for user 42" in text
    assert "watched last: Fargo (1996) · Heat (1995)" in text
    assert "Star Wars (1977)" in text
    assert "by v00000003, delta 12" in text


@pytest.mark.parametrize("title", ["word " * 60, "x" * 300, "千と千尋の神隠し " * 20, "🎬" * 90])
def test_a_title_that_is_too_long_is_cut_and_its_place_and_score_stay(title):
    out = io.StringIO()
    items = [{"title": title, "score": 0.5}] * 11
    print_recommendations(
        Terminal(file=out, width=80), {"user_id": 1, "watched_last": [title] * 3, "items": items}
    )
    lines = out.getvalue().splitlines()
    assert max(map(cell_len, lines)) <= 80
    assert [line.split()[0] for line in lines[-11:]] == [str(n) for n in range(1, 12)]
    assert all("…" in line and line.endswith(" 0.500 ") for line in lines[-11:])
    assert " ".join(out.getvalue().split()).count("… ·") == 2


def test_the_report_prints_the_figures_the_problems_and_how_to_go_on(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    figures = DemoFigures(
        events_produced=100_000,
        events_trained=99_998,
        progressive_hr10=0.2,
        popularity_hr10=0.08,
        cooccurrence_hr10=0.17,
        progressive_sample=10_000,
        served_hr10=0.19,
        served_sample=1_234,
        index_versions=9,
        run_dir=str(tmp_path / "runs" / "demo" / "x"),
        recommendations=[user_entry(FakeRecommender(), 42, 2)],
    )
    figures.judge()
    out = io.StringIO()
    print_report(Terminal(file=out, width=100), figures)
    text = out.getvalue()
    assert "100,000 produced, 99,998 trained" in text
    assert ".200 (2.5 × popularity .080; co-occurrence .170)" in text
    assert "10,000 events of the second half" in text
    assert ".190 on 1,234 of them, by the version that was live at the moment" in text
    assert "Failed checks: 99,998 of 100,000" in text
    command = text.splitlines()[-1]
    assert command.endswith(" recommend --config runs/demo/x/settings.yaml --user 42")


def test_the_reports_last_line_is_a_command_that_a_shell_runs_from_here(tmp_path, monkeypatch):
    """Wherever freshet is, whatever the folder is called, however narrow the terminal."""
    here = tmp_path / "a folder; $(odd)"
    bin_dir = here / ".venv" / "bin"
    bin_dir.mkdir(parents=True)
    monkeypatch.chdir(here)
    script = bin_dir / "freshet"
    script.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    script.chmod(0o755)
    figures = DemoFigures(run_dir=str(here / "runs of mine" / "x" / ("y" * 30)), problems=["something"])
    for called, path in ((script, os.environ["PATH"]), (script, f"{bin_dir}:{os.environ['PATH']}")):
        monkeypatch.setattr(sys, "argv", [str(called), "demo"])
        monkeypatch.setenv("PATH", path)
        out = io.StringIO()
        print_report(Terminal(file=out, width=40), figures)
        command = out.getvalue().splitlines()[-1]
        done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=True)
        settings = f"{'runs of mine/x/' + 'y' * 30}/settings.yaml"
        assert done.stdout.splitlines() == ["recommend", "--config", settings, "--user", "1"]
