"""Roots: one driver, one stopping rule, one answer, one algorithm a file."""

from contraflow.solvers.chandrupatla import Chandrupatla, find_root, monotone_root
from contraflow.solvers.driver import Iterate, RowMap, Solver, default_atol, solve
from contraflow.solvers.implicit import attach_root
from contraflow.solvers.newton import Newton
from contraflow.solvers.picard import Picard
from contraflow.solvers.solution import Solution

__all__ = [
    "Chandrupatla",
    "Iterate",
    "Newton",
    "Picard",
    "RowMap",
    "Solution",
    "Solver",
    "attach_root",
    "default_atol",
    "find_root",
    "monotone_root",
    "solve",
]
