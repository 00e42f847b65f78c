"""TensorBoard's events: a convenience, which must not end a training."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import TensorBoardLogger


@contextmanager
def event_log(folder: Path) -> Iterator[TensorBoardLogger]:
    """Yield a logger that writes into a folder; a full disk ends it with one warning."""
    before = threading.excepthook

    def hook(failed: threading.ExceptHookArgs) -> None:
        # The writer's thread hands its error to the next call as well, where it is told.
        of_writer = type(failed.thread).__module__.startswith("tensorboard.")
        if not (of_writer and issubclass(failed.exc_type, OSError)):
            before(failed)

    threading.excepthook = hook
    try:
        yield _Events(folder.parent, name=folder.name, version="")
    finally:
        threading.excepthook = before


class _Events(TensorBoardLogger):
    """Lightning's logger, silent once a write has failed."""

    failed = False

    @property
    def experiment(self) -> Any:
        """Return TensorBoard's writer; None once a write has failed."""
        return self._attempt(lambda: super(_Events, self).experiment)

    def log_metrics(self, *args: Any, **kwargs: Any) -> None:
        self._attempt(super().log_metrics, *args, **kwargs)

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        self._attempt(super().log_hyperparams, *args, **kwargs)

    def save(self) -> None:
        self._attempt(super().save)

    def finalize(self, status: str) -> None:
        self._attempt(super().finalize, status)

    def _attempt(self, write: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if self.failed:
            return None
        try:
            return write(*args, **kwargs)
        except OSError as error:
            self.failed = True
            warnings.warn(
                f"{self.log_dir}: no more events for TensorBoard ({error.strerror}); metrics.csv "
                "goes on.",
                stacklevel=2,
            )
            return None
