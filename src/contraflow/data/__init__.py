"""Data sources: read, split, name columns; nothing else."""

from contraflow.data.benchmarks import Bsds300, Gas, Hepmass, Miniboone, Power
from contraflow.data.digits import Digits
from contraflow.data.mnist import Mnist, read_idx
from contraflow.data.planar import Planar
from contraflow.data.splits import Part, Source, Splits
from contraflow.data.tabular import Table, TableFile, open_table, read_table

__all__ = [
    "Bsds300",
    "Digits",
    "Gas",
    "Hepmass",
    "Miniboone",
    "Mnist",
    "Part",
    "Planar",
    "Power",
    "Source",
    "Splits",
    "Table",
    "TableFile",
    "open_table",
    "read_idx",
    "read_table",
]
