"""Plain technical English: wording that a reader must translate does not come back."""

import re

import click
import pytest
import typer

from deploy.cli import app
from deploy.command.setting_descriptions import describe_settings
from tests.support.documents import ROOT, pages

QUAINT = re.compile(
    r"\bforet(?:ell|old)\w*|\bmended\b|\b(?:is|are) told\b|\bbut for (?!each)|\bwhat is other\b|\b(?:is|are) other\b"
    r"|\bfor ever\b|\bof late\b|\bwhomever\b",
    re.IGNORECASE,
)
PACKAGES = ("cluster", "streaming", "model", "retrieval", "deploy")


def _verbs(command, path):
    if isinstance(command, click.Group):
        for name, child in command.commands.items():
            yield from _verbs(child, f"{path} {name}")
    yield path, command


def _quaint(text):
    flowing = re.sub(r"\s+", " ", text)
    return [found.group() for found in QUAINT.finditer(flowing)]


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_documents(page):
    assert _quaint(page.read_text()) == []


@pytest.mark.parametrize(
    ("path", "command"),
    list(_verbs(typer.main.get_command(app), "freshet")),
    ids=lambda value: str(value)[:40],
)
def test_help_of_a_verb(path, command):
    assert _quaint(command.get_help(click.Context(command, info_name=path))) == []


def test_help_of_the_settings():
    assert {setting.key: found for setting in describe_settings() if (found := _quaint(setting.help))} == {}


@pytest.mark.parametrize("package", PACKAGES)
def test_messages_docstrings_and_comments(package):
    files = sorted((ROOT / package).rglob("*.py"))
    assert files
    assert {str(f.relative_to(ROOT)): found for f in files if (found := _quaint(f.read_text()))} == {}
