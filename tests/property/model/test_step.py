"""A whole step of any users, histories and negatives: every loss term is that of the reference."""

from dataclasses import replace
from itertools import accumulate

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.equations import CONFIG, check_terms
from tests.support.training_batches import Run

ITEMS = st.integers(1, 30)


@st.composite
def runs(draw):
    """Few users, so that some come twice; few attributes, so that some users are alike; some events of one time."""
    targets = draw(st.lists(ITEMS, min_size=1, max_size=4))
    context = draw(st.lists(ITEMS, max_size=7))
    events = len(context) + len(targets)
    passed = draw(st.lists(st.integers(0, 1), min_size=events, max_size=events))
    return Run(
        draw(st.integers(1, 6)),
        context,
        targets,
        attributes=(draw(st.integers(0, 1)), draw(st.integers(0, 2))),
        weights=draw(
            st.lists(st.sampled_from([0.5, 1.0, 3.0]), min_size=len(targets), max_size=len(targets))
        ),
        negatives=tuple(draw(st.lists(ITEMS, max_size=2))),
        times=list(accumulate(passed)),
    )


SETTINGS = st.fixed_dictionaries(
    {
        "similarity": st.sampled_from(["cosine", "dot"]),
        "loss": st.sampled_from(["softmax", "pointwise"]),
        "history_before": st.sampled_from(["event", "time"]),
        "negative_sequence": st.sampled_from(["explicit", "older_half"]),
        "contrastive_items": st.sampled_from(["targets", "candidates"]),
        "augmented_vectors": st.booleans(),
        "user_id_embedding": st.booleans(),
        "transformer": st.booleans(),
        "source_items": st.sampled_from([0, 2]),
        "history_length": st.integers(1, 5),
    }
)


@settings(max_examples=40)
@given(st.lists(runs(), min_size=1, max_size=5), SETTINGS)
def test_every_loss_term_of_any_step_is_that_of_the_equations(some_runs, switches):
    check_terms(replace(CONFIG, **switches), some_runs)
