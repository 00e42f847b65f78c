"""Names that the doctests use."""

import pathlib

import pytest
import torch


@pytest.fixture(autouse=True)
def _doctest_names(doctest_namespace: dict, tmp_path: pathlib.Path) -> None:
    torch.manual_seed(0)
    doctest_namespace["torch"] = torch
    doctest_namespace["tmp_path"] = tmp_path
