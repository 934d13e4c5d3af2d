"""Plain technical English: wording that a reader must translate does not come back."""

import io
import re
import tokenize

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
TRANSLATED = re.compile(
    r"\b(?:go|goes|going|went|gone) on\b|\banew\b(?!:)|\bwho(?:m)?ever\b|\b(?:some|no|every)body\b|\bno matter of\b"
    r"|\bbecame of\b|\bas of now\b|\bsettings of now\b|\bon (?:its|their) way\b|\bloudly\b",
    re.IGNORECASE,
)
"""Gone from prose: documents, and comments, docstrings, and messages. Names in code may have them."""
PROSE = {tokenize.COMMENT, tokenize.STRING, getattr(tokenize, "FSTRING_MIDDLE", tokenize.STRING)}
PACKAGES = ("cluster", "streaming", "model", "retrieval", "deploy")


def _verbs(command, path):
    if isinstance(command, click.Group):
        for name, child in command.commands.items():
            yield from _verbs(child, f"{path} {name}")
    yield path, command


def _found(words, text):
    flowing = re.sub(r"\s+(?:# )?", " ", text)
    return [found.group() for found in words.finditer(flowing)]


def _quaint(text):
    return _found(QUAINT, text)


def _prose(source):
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    # Until Python 3.12 an f-string is one token with the code in its braces.
    return " ".join(re.sub(r"\{\w[^{}]*\}", "", token.string) for token in tokens if token.type in PROSE)


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_documents(page):
    text = page.read_text()
    assert _quaint(text) + _found(TRANSLATED, text) == []


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


@pytest.mark.parametrize("package", PACKAGES)
def test_comments_docstrings_and_messages_do_not_read_as_translated(package):
    files = sorted((ROOT / package).rglob("*.py"))
    wrong = {str(f.relative_to(ROOT)): _found(TRANSLATED, _prose(f.read_text())) for f in files}
    assert {file: found for file, found in wrong.items() if found} == {}


def test_names_in_code_are_not_prose_and_comments_over_two_lines_are():
    source = 'anew = 1  # training goes\n# on\nx = f"{anew} whoever"\n'
    assert _found(TRANSLATED, _prose(source)) == ["goes on", "whoever"]
