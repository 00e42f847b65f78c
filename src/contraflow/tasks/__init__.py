"""Training: Lightning does the loop, these are its tasks."""

from contraflow.tasks.density import DensityTask, Optimisation
from contraflow.tasks.fitting import fit
from contraflow.tasks.loaders import SplitsModule
from contraflow.tasks.schedule import LipschitzSchedule
from contraflow.tasks.training import Training, train

__all__ = [
    "DensityTask",
    "LipschitzSchedule",
    "Optimisation",
    "SplitsModule",
    "Training",
    "fit",
    "train",
]
