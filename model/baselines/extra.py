"""Packages that only an evaluation needs."""

from __future__ import annotations

import importlib
from typing import Any


class MissingPackage(ImportError):
    """A package of the extra `evaluation` is not installed."""


def evaluation_package(name: str) -> Any:
    """Import a module of the extra `evaluation`.

    Raises:
        MissingPackage: it is not installed; names the extra.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        package = name.partition(".")[0]
        raise MissingPackage(
            f"{package} is not installed; it comes with the extra: pip install 'freshet[evaluation]'"
        ) from error
