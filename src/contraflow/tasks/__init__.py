"""Training: Lightning does the loop, these are its tasks."""

from contraflow.tasks.density import DensityTask, Optimisation
from contraflow.tasks.fitting import fit
from contraflow.tasks.loaders import SplitsModule
from contraflow.tasks.training import Training, train

__all__ = ["DensityTask", "Optimisation", "SplitsModule", "Training", "fit", "train"]
