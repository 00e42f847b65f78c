"""The five tables that density estimation is compared on, cut and scaled as published."""

from contraflow.data.benchmarks.bsds300 import Bsds300
from contraflow.data.benchmarks.gas import Gas
from contraflow.data.benchmarks.hepmass import Hepmass
from contraflow.data.benchmarks.miniboone import Miniboone
from contraflow.data.benchmarks.power import Power

__all__ = ["Bsds300", "Gas", "Hepmass", "Miniboone", "Power"]
