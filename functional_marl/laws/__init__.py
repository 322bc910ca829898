"""The laws of sharing: properties that hold for every network, sharing, view, input and key.

A law is called on a :class:`Subject` and raises :class:`LawViolation` if the subject breaks it; :data:`LAWS` has all of
them by name. :func:`check` calls them on a module of any library. Nothing here imports hypothesis;
``functional_marl.laws.strategies`` generates subjects with it, for property-based tests.
"""

from functional_marl.laws import zoo as zoo
from functional_marl.laws._check import check as check
from functional_marl.laws._check import check_marl_module as check_marl_module
from functional_marl.laws._check import module_subject as module_subject
from functional_marl.laws._check_grouping import check_group_map as check_group_map
from functional_marl.laws._check_grouping import check_grouping as check_grouping
from functional_marl.laws._claims import Claims as Claims
from functional_marl.laws._infer import Inferred as Inferred
from functional_marl.laws._infer import infer_sharing as infer_sharing
from functional_marl.laws._law import LAWS_VERSION as LAWS_VERSION
from functional_marl.laws._law import Capability as Capability
from functional_marl.laws._law import Law as Law
from functional_marl.laws._law import LawViolation as LawViolation
from functional_marl.laws._law import NotApplicable as NotApplicable
from functional_marl.laws._module_subject import ModuleSubject as ModuleSubject
from functional_marl.laws._network_subject import NetworkSubject as NetworkSubject
from functional_marl.laws._network_view import network_view as network_view
from functional_marl.laws._operations import Operations as Operations
from functional_marl.laws._parametrize import parametrize_with_laws as parametrize_with_laws
from functional_marl.laws._report import Report as Report
from functional_marl.laws._subject import CheckError as CheckError
from functional_marl.laws._subject import Subject as Subject
from functional_marl.laws._topics import LAWS as LAWS
from functional_marl.laws._verdict import Verdict as Verdict
from functional_marl.laws._zoo_subject import zoo_subject as zoo_subject
from functional_marl.laws.equivalence import Patterns as Patterns
from functional_marl.laws.facade import Facade as Facade
from functional_marl.laws.groups import Critics as Critics
from functional_marl.laws.groups import Grouped as Grouped
from functional_marl.laws.groups import Named as Named

__all__ = [
    "LAWS",
    "LAWS_VERSION",
    "Capability",
    "CheckError",
    "Claims",
    "Critics",
    "Facade",
    "Grouped",
    "Inferred",
    "Law",
    "LawViolation",
    "ModuleSubject",
    "Named",
    "NetworkSubject",
    "NotApplicable",
    "Operations",
    "Patterns",
    "Report",
    "Subject",
    "Verdict",
    "check",
    "check_group_map",
    "check_grouping",
    "check_marl_module",
    "infer_sharing",
    "module_subject",
    "network_view",
    "parametrize_with_laws",
    "zoo",
    "zoo_subject",
]
