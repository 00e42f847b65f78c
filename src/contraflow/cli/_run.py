"""A run's folder: where its parts lie and how they are read back."""

from __future__ import annotations

import json
import os
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from contraflow._files import written_beside
from contraflow.cli._yaml import read_yaml
from contraflow.data import Part, Splits
from contraflow.errors import ConfigurationError, nearest
from contraflow.evaluation import Certificate
from contraflow.flow import Flow
from contraflow.serialization import load_certified, read_metadata


@dataclass(frozen=True)
class Run:
    """The folder of one training run.

    Args:
        folder: ``OUT/NAME``.
    """

    folder: Path

    @property
    def config(self) -> Path:
        """Return the complete configuration."""
        return self.folder / "config.yaml"

    @property
    def model(self) -> Path:
        """Return the weights."""
        return self.folder / "model.safetensors"

    @property
    def certificate(self) -> Path:
        """Return the certificate."""
        return self.folder / "certificate.json"

    @property
    def evaluation(self) -> Path:
        """Return the last evaluation."""
        return self.folder / "evaluation.json"

    @property
    def metrics(self) -> Path:
        """Return the training curves."""
        return self.folder / "metrics.csv"

    @property
    def samples(self) -> Path:
        """Return the picture of samples."""
        return self.folder / "samples.png"

    @property
    def checkpoint(self) -> Path:
        """Return what a resumed training goes on from."""
        return self.folder / "checkpoints" / "last.ckpt"

    @contextmanager
    def exclusively(self) -> Iterator[None]:
        """Make the folder and hold it: a second training into it is refused.

        The system lets go of it when the process ends, however it ends. A folder into which
        nothing was written is removed again.

        Raises:
            ConfigurationError: another process holds it, or it cannot be written to.
        """
        if not is_first_process():  # the first one of this training holds it already
            yield
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.folder / ".lock", timeout=0)
            with lock:
                for left in self.folder.rglob("*.partial"):  # by a training that was killed
                    left.unlink(missing_ok=True)
                try:
                    yield
                finally:
                    if os.listdir(self.folder) == [".lock"]:  # nothing came of it
                        shutil.rmtree(self.folder, ignore_errors=True)
        except Timeout:
            raise ConfigurationError(
                f"{self.folder}: another training is writing here; choose another --name, or wait "
                "for its end."
            ) from None

    def flow(self) -> tuple[Flow, Certificate]:
        """Load the model, in ``eval()`` mode, with its certificate; warn if it is not certified."""
        flow, certificate = load_certified(self.model)
        if certificate.warning:
            warnings.warn(f"{self.model}: {certificate.warning}", stacklevel=2)
        return flow, certificate

    def settings(self) -> dict[str, Any]:
        """Read the configuration as plain data.

        Raises:
            ConfigurationError: it is missing, or no mapping in YAML.
        """
        return read_yaml(self.config)

    def metadata(self) -> dict[str, Any]:
        """Return what training wrote into the model file: command, environment, columns."""
        return read_metadata(self.model)["metadata"]

    def digest(self) -> str:
        """Return the digest of weights and configuration, which says what was evaluated."""
        return read_metadata(self.model)["digest"]

    def splits(self, data_root: str | None = None) -> Splits:
        """Load the data that the run was trained on.

        Raises:
            ConfigurationError: the configuration does not say which.
            DataError: they are gone, or damaged.
        """
        from contraflow.cli._config import data_source

        data = self.settings().get("data")
        try:
            return data_source(data, data_root).load()
        except ConfigurationError as error:
            raise ConfigurationError(f"{self.config}: {error}") from error


def is_first_process() -> bool:
    """Tell whether this is the first of the processes that train together; also when alone."""
    for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID"):  # as Lightning looks for it
        if name in os.environ:
            return int(os.environ[name]) == 0
    return True


def open_run(path: str | os.PathLike[str]) -> Run:
    """Return an existing run.

    Raises:
        ConfigurationError: there is no such folder, or it holds no model.
    """
    run = Run(Path(path))
    if not run.folder.is_dir():
        if run.folder.exists():
            raise ConfigurationError(f"{run.folder}: is a file; expected the folder of a run.")
        siblings = [str(path) for path in run.folder.parent.glob("*/")]
        raise ConfigurationError(
            f"{run.folder}: no such run folder{nearest(str(run.folder), siblings) or '.'}"
        )
    if not run.model.is_file():
        raise ConfigurationError(
            f"{run.folder}: holds no model.safetensors; was the training finished? "
            "Go on with: contraflow train ... --resume."
        )
    return run


def keep_json(path: Path, value: Any) -> None:
    """Write a result that was printed already; warn if it cannot be kept."""
    try:
        write_json(path, value)
    except OSError as error:
        warnings.warn(f"{path}: not kept: {error.strerror}.", stacklevel=2)


def write_json(path: Path, value: Any) -> None:
    """Write JSON beside the target, then rename; NaN and infinity are refused."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 beside the target, then rename: a reader never sees half a file."""
    with written_beside(path) as partial:
        partial.write_text(text, encoding="utf-8")


def flow_dtype(flow: Flow) -> torch.dtype:
    """Return the dtype of the flow's weights."""
    return next(flow.parameters()).dtype


def as_input(x: torch.Tensor, flow: Flow) -> torch.Tensor:
    """Return data in the flow's dtype."""
    return x.to(flow_dtype(flow))


def inputs(part: Part, flow: Flow) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return rows and context in the flow's dtype."""
    context = None if part.context is None else as_input(part.context, flow)
    return as_input(part.x, flow), context


def spread(part: Part, limit: int | None) -> Part:
    """Return at most ``limit`` evenly spaced rows: files may be sorted by class."""
    if limit is None or limit >= len(part):
        return part
    rows = torch.linspace(0, len(part) - 1, limit).round().long()
    return part.rows(rows)
