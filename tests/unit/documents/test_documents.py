import re
import subprocess

import pytest

from cluster.observability.figures import BY_NAME
from deploy.command.setting_descriptions import describe_settings
from tests.support import progress_page, settings_page
from tests.support.documents import DECISIONS, ROOT, anchors, code_spans, commands, guides, links, pages

README_WORDS, DESIGN_WORDS, DECISION_WORDS = 900, 1500, 150
NO_SETTINGS = {"index.faiss", "model.json"}
"""Files whose names look like settings."""
_PATH = re.compile(r"(?:cluster|streaming|model|retrieval|deploy|tests|docs|\.ci)/[\w./-]*\w")
_CITED = re.compile(r"(?<![\w/.])docs/[\w/-]+(?:\.md)?\b|\b(?:README|DESIGN|CONTRIBUTING)\.md\b")
_NOT_IN_THE_REPOSITORY = re.compile(
    r"\b(?:MODEL|FACTS|NEXT|HOUSE|STYLE|BRIEF\d*)\.md\b|(?:^|[\s\"'(])\.\./shared/"
)


def _id(page):
    return str(page.relative_to(ROOT))


def _product_and_tests():
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    names = [
        name
        for name in listed.stdout.splitlines()
        if name.endswith((".py", ".yaml", ".md", ".toml", "Makefile"))
    ]
    return [ROOT / name for name in names if (ROOT / name).is_file()]


@pytest.mark.parametrize("page", pages(), ids=_id)
def test_every_link_of_a_document_leads_to_a_file_and_a_heading(page):
    broken = []
    for target in links(page):
        if target.startswith(("http://", "https://")):
            continue
        path, _, anchor = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        inside = linked.exists() and ROOT in [linked, *linked.parents]
        if not inside or (anchor and anchor not in anchors(linked)):
            broken.append(target)
    assert broken == []


@pytest.mark.parametrize("page", guides(), ids=_id)
def test_every_path_that_a_document_names_is_in_the_repository(page):
    named = {match for span in code_spans(page) for match in _PATH.findall(span) if match == span}
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []


def test_code_and_documents_cite_only_files_that_are_in_the_repository():
    wrong = []
    for file in _product_and_tests():
        if file.name == "test_documents.py":
            continue
        text = file.read_text()
        wrong += [f"{_id(file)}: {cited}" for cited in _NOT_IN_THE_REPOSITORY.findall(text)]
        for cited in _CITED.findall(text):
            decision = re.fullmatch(r"docs/decisions/(\d{4})", cited)
            exists = list(DECISIONS.glob(f"{decision[1]}-*.md")) if decision else (ROOT / cited).exists()
            if not exists and file.suffix != ".md":
                wrong.append(f"{_id(file)}: {cited}")
    assert wrong == []


def test_the_settings_page_is_what_the_dataclasses_say():
    written = settings_page.PAGE.read_text()
    assert written == settings_page.page(), "run python -m tests.support.settings_page"


def test_the_progress_page_is_what_the_figures_declare():
    written = progress_page.PAGE.read_text()
    assert written == progress_page.page(), "run python -m tests.support.progress_page"


def test_every_setting_that_a_document_names_exists():
    keys = {setting.key for setting in describe_settings()}
    sections = {key.partition(".")[0] for key in keys if "." in key}
    known = keys | set(BY_NAME) | NO_SETTINGS
    unknown = set()
    for page in guides():
        for span in code_spans(page):
            for key in re.findall(r"(?<![\w./-])([a-z]+\.[a-z_0-9]+)(?==|$)", span):
                if key.partition(".")[0] in sections and key not in known:
                    unknown.add(f"{_id(page)}: {key}")
    assert unknown == set()


@pytest.mark.parametrize(
    ("name", "limit"), [("README.md", README_WORDS), ("DESIGN.md", DESIGN_WORDS)], ids=["readme", "design"]
)
def test_readme_and_design_stay_short(name, limit):
    assert len((ROOT / name).read_text().split()) <= limit


def test_decisions_are_numbered_without_gaps_short_and_listed():
    decisions = sorted(DECISIONS.glob("[0-9]*.md"))
    assert [int(page.name[:4]) for page in decisions] == list(range(1, len(decisions) + 1))
    assert {page.name: n for page in decisions if (n := len(page.read_text().split())) > DECISION_WORDS} == {}
    assert links(DECISIONS / "README.md")[1:] == [page.name for page in decisions]


@pytest.mark.parametrize("page", sorted(DECISIONS.glob("[0-9]*.md")), ids=lambda page: page.stem)
def test_a_decision_has_its_number_status_context_decision_and_consequence(page):
    lines = page.read_text().splitlines()
    assert lines[0].startswith(f"# {int(page.name[:4])}. ")
    assert lines[2].startswith("Status: ")
    assert [line for line in lines if line.startswith("## ")] == [
        "## Context",
        "## Decision",
        "## Consequence",
    ]


def test_a_benchmark_page_names_commit_and_machine():
    without = {}
    for page in sorted((ROOT / "docs" / "benchmarks").glob("*.md")):
        text = page.read_text()
        if page.name != "README.md" and not (
            "commit" in text and "machine" in text.lower() and commands(page)
        ):
            without[page.name] = text[:80]
    assert without == {}
