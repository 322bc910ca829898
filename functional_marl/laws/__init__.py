"""WIP."""

from functional_marl.laws import dependence as dependence
from functional_marl.laws import initialization as initialization
from functional_marl.laws import purity as purity
from functional_marl.laws import randomness as randomness
from functional_marl.laws import reentrancy as reentrancy
from functional_marl.laws import shapes as shapes
from functional_marl.laws import symmetry as symmetry
from functional_marl.laws import training as training
from functional_marl.laws._check import check as check
from functional_marl.laws._check import check_marl_module as check_marl_module
from functional_marl.laws._check import module_subject as module_subject
from functional_marl.laws._claims import Claims as Claims
from functional_marl.laws._infer import infer_sharing as infer_sharing
from functional_marl.laws._law import LAWS as LAWS
from functional_marl.laws._parametrize import parametrize_with_laws as parametrize_with_laws
from functional_marl.laws._report import Report as Report
from functional_marl.laws._verdict import Verdict as Verdict
