"""All topics: importing one enters its laws in LAWS."""

from functional_marl.laws import compilation as compilation
from functional_marl.laws import dependence as dependence
from functional_marl.laws import equivalence as equivalence
from functional_marl.laws import facade as facade
from functional_marl.laws import groups as groups
from functional_marl.laws import initialization as initialization
from functional_marl.laws import purity as purity
from functional_marl.laws import randomness as randomness
from functional_marl.laws import reentrancy as reentrancy
from functional_marl.laws import shapes as shapes
from functional_marl.laws import structure as structure
from functional_marl.laws import symmetry as symmetry
from functional_marl.laws import training as training
from functional_marl.laws._law import LAWS as LAWS

__all__ = [
    "LAWS",
    "compilation",
    "dependence",
    "equivalence",
    "facade",
    "groups",
    "initialization",
    "purity",
    "randomness",
    "reentrancy",
    "shapes",
    "structure",
    "symmetry",
    "training",
]
