"""docs/reference/progress.md, out of the declared figures: `python -m tests.support.progress_page` writes it."""

from cluster.observability.figures import FIGURES
from tests.support.documents import ROOT

PAGE = ROOT / "docs" / "reference" / "progress.md"
_HEAD = """\
<!-- written by `python -m tests.support.progress_page`; a test compares it with cluster/observability/figures.py -->
# Progress figures

`storage_path/progress.json` is what the trainer last reported. Rank 0 replaces it atomically, at most twice a second.
`freshet status` reads it together with checkpoints, index versions, and the topic's ends; `freshet status --json FILE`
writes all of it. A dot in a name leads into an object.

A counter never falls within a run, a gauge may, and an info is not a number to add up or compare. The bins of
[progressive validation](../glossary.md#progressive-validation) are counted in trained events. Freshness is the time
from the broker's append of an event to the moment a version trained on it is servable.

| field | kind | unit | meaning |
|---|---|---|---|
"""


def page() -> str:
    """The whole page."""
    return _HEAD + "".join(f"| `{f.name}` | {f.kind} | {f.unit} | {f.help} |\n" for f in FIGURES)


if __name__ == "__main__":
    PAGE.write_text(page())
