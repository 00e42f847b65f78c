"""Data sources: read, split, name columns; nothing else."""

from contraflow.data.benchmarks import Bsds300, Gas, Hepmass, Miniboone, Power
from contraflow.data.binarized_mnist import BinarizedMnist
from contraflow.data.binning import bin_levels
from contraflow.data.cifar import Cifar10, Cifar100
from contraflow.data.digits import Digits
from contraflow.data.idx import read_idx
from contraflow.data.image_folder import ImageFolder
from contraflow.data.mnist import FashionMnist, Mnist
from contraflow.data.planar import Planar
from contraflow.data.splits import Part, Source, Splits
from contraflow.data.svhn import Svhn
from contraflow.data.tabular import Table, TableFile, open_table, read_table

__all__ = [
    "BinarizedMnist",
    "Bsds300",
    "Cifar10",
    "Cifar100",
    "Digits",
    "FashionMnist",
    "Gas",
    "Hepmass",
    "ImageFolder",
    "Miniboone",
    "Mnist",
    "Part",
    "Planar",
    "Power",
    "Source",
    "Splits",
    "Svhn",
    "Table",
    "TableFile",
    "bin_levels",
    "open_table",
    "read_idx",
    "read_table",
]
