"""Events that raise at a chosen point of a training step, only on their own rank."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial, wraps
from pkgutil import resolve_name
from typing import Any
from unittest.mock import patch

WEIGHT = 77.0
"""The weight of the events that raise."""

_TOWER = "model.cl_epidtn:CLEPIDTN"
PLACES = {
    "inputs": ("cluster.training.steps.train_step:query_inputs", None),
    "masks": ("cluster.training.steps.candidates:_known_pairs", None),
    "items for scoring": (f"{_TOWER}.encode_items", False),
    "scoring": ("cluster.training.steps.progressive:sample_mask", None),
    "towers": (f"{_TOWER}.encode_step", True),
    "between messages": (f"{_TOWER}._main", True),
    "after the last message": (f"{_TOWER}._terms", True),
    "backward": (f"{_TOWER}._main", True),
}
"""The point that raises, and the mode of the model in which it does (None: any)."""


@contextmanager
def raising_at(place: str) -> Iterator[None]:
    """Batches with an event of weight 77 raise a KeyError there, "" for nowhere."""
    bad = []
    with ExitStack() as patches:
        change = partial(_change, patches)

        def look(function: Callable[..., Any], batch: Any, *arguments: Any) -> Any:
            bad[:] = [(batch.column("weight").flatten().to_numpy() == WEIGHT).any()]
            return function(batch, *arguments)

        def fail(training: bool | None, function: Callable[..., Any], *arguments: Any) -> Any:
            wanted = training is None or arguments[0].training == training
            if not (wanted and bad[0]):
                return function(*arguments)
            if place == "backward":
                found = function(*arguments)
                found.register_hook(_raise)
                return found
            return _raise()

        if place:
            name, training = PLACES[place]
            change(name, partial(fail, training))
        change(PLACES["inputs"][0], look)
        yield


def _raise(*_: Any) -> Any:
    raise KeyError(f"an event of weight {WEIGHT:g}")


def _change(patches: ExitStack, name: str, around: Callable[..., Any]) -> None:
    owner, attribute = name.replace(":", ".").rsplit(".", 1)
    target = resolve_name(owner if "CLEPIDTN" not in owner else _TOWER)
    function = getattr(target, attribute)
    changed = wraps(function)(lambda *arguments, **named: around(partial(function, **named), *arguments))
    patches.enter_context(patch.object(target, attribute, changed))
