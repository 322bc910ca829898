"""temporary"""

import contextlib
import importlib

from functional_marl.laws import zoo as zoo
from functional_marl.laws._capabilities import *  # noqa
from functional_marl.laws._law import LAWS, Capability, Law, LawViolation, NotApplicable
from functional_marl.laws._operations import LIBRARY, Operations
from functional_marl.laws._subject import Subject, CheckError
from functional_marl.laws._network_subject import NetworkSubject
from functional_marl.laws._module_subject import ModuleSubject
from functional_marl.laws._zoo_subject import zoo_subject
from functional_marl.laws.equivalence import Patterns
from functional_marl.laws.facade import Facade
from functional_marl.laws.groups import Critics, Grouped, Named

for _n in ("structure", "compilation", "dependence", "training", "symmetry", "shapes", "randomness", "purity"):
    with contextlib.suppress(ImportError):
        importlib.import_module(f"functional_marl.laws.{_n}")
