"""Names that the doctests use."""

import pathlib

import pytest
import torch

import contraflow  # noqa: F401 - before pytest collects the sources, or they would be imported twice


@pytest.fixture(autouse=True)
def _doctest_names(doctest_namespace: dict, tmp_path: pathlib.Path) -> None:
    torch.manual_seed(0)
    doctest_namespace["torch"] = torch
    doctest_namespace["tmp_path"] = tmp_path
