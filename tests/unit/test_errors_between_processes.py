"""A rank's exceptions are read in Ray's controller and the driver, so all our errors must survive pickling."""

import importlib
import inspect
import pickle
import pkgutil

import pytest

PACKAGES = ("streaming", "model", "retrieval", "cluster", "deploy")


def _errors() -> list[type[BaseException]]:
    found = []
    for package in PACKAGES:
        path = importlib.import_module(package).__path__
        for module in pkgutil.walk_packages(path, f"{package}."):
            if module.name.endswith("__main__"):
                continue
            for thing in vars(importlib.import_module(module.name)).values():
                ours = inspect.isclass(thing) and thing.__module__ == module.name
                if ours and issubclass(thing, BaseException):
                    found.append(thing)
    return found


ERRORS = _errors()


@pytest.mark.parametrize("kind", ERRORS, ids=lambda kind: kind.__name__)
def test_an_error_is_the_same_in_another_process(kind):
    arguments = ["why"]
    if "__init__" in vars(kind):
        arguments *= len(inspect.signature(kind).parameters)
    error = kind(*arguments)
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is kind
    assert str(again) == str(error)
    assert vars(again) == vars(error)
    assert "why" in str(error)
    assert "(" not in str(error)  # a person reads a message, no tuple of arguments


def test_there_are_errors_with_fields_of_their_own():
    assert {"StorageTaken", "StepRefused"} <= {kind.__name__ for kind in ERRORS if "__init__" in vars(kind)}
