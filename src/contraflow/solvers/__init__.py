"""Roots: one driver, one stopping rule, one answer, one algorithm a file."""

from contraflow.solvers.anderson import Anderson
from contraflow.solvers.auto import Auto
from contraflow.solvers.broyden import Broyden
from contraflow.solvers.chandrupatla import Chandrupatla, find_root, monotone_root
from contraflow.solvers.driver import default_atol, solve
from contraflow.solvers.implicit import attach_root
from contraflow.solvers.inexact_newton import InexactNewton
from contraflow.solvers.newton import Newton
from contraflow.solvers.picard import Picard
from contraflow.solvers.problem import Iterate, Proposal, RowMap
from contraflow.solvers.solution import Solution
from contraflow.solvers.solver import Solver

__all__ = [
    "Anderson",
    "Auto",
    "Broyden",
    "Chandrupatla",
    "InexactNewton",
    "Iterate",
    "Newton",
    "Picard",
    "Proposal",
    "RowMap",
    "Solution",
    "Solver",
    "attach_root",
    "default_atol",
    "find_root",
    "monotone_root",
    "solve",
]
