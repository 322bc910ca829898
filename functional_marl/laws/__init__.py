"""The laws of sharing: properties that hold for every network, sharing, view, input and key.

A law is called on a :class:`Subject` and raises :class:`LawViolation` if the subject breaks it. Nothing here
imports hypothesis; ``functional_marl.laws.strategies`` draws subjects with it, for property-based tests.
"""

from functional_marl.laws import laws as laws
from functional_marl.laws import zoo as zoo
from functional_marl.laws._report import Report as Report
from functional_marl.laws._verdict import Verdict as Verdict
from functional_marl.laws.asking import FOREIGN as FOREIGN
from functional_marl.laws.cases import subject as subject
from functional_marl.laws.checking import assert_laws as assert_laws
from functional_marl.laws.checking import check as check
from functional_marl.laws.checking import each_law as each_law
from functional_marl.laws.checking import foreign as foreign
from functional_marl.laws.critics import Critics as Critics
from functional_marl.laws.equivalence import Patterns as Patterns
from functional_marl.laws.grouping import check_grouping as check_grouping
from functional_marl.laws.groups import Grouped as Grouped
from functional_marl.laws.groups import Named as Named
from functional_marl.laws.host import CheckError as CheckError
from functional_marl.laws.infer import Inferred as Inferred
from functional_marl.laws.infer import infer_sharing as infer_sharing
from functional_marl.laws.law import LAWS as LAWS
from functional_marl.laws.law import Law as Law
from functional_marl.laws.law import LawViolation as LawViolation
from functional_marl.laws.law import NotApplicable as NotApplicable
from functional_marl.laws.modules import Facade as Facade
from functional_marl.laws.subject import Ops as Ops
from functional_marl.laws.subject import Subject as Subject

__all__ = [
    "FOREIGN",
    "LAWS",
    "CheckError",
    "Critics",
    "Facade",
    "Grouped",
    "Inferred",
    "Law",
    "LawViolation",
    "Named",
    "NotApplicable",
    "Ops",
    "Patterns",
    "Report",
    "Subject",
    "Verdict",
    "assert_laws",
    "check",
    "check_grouping",
    "each_law",
    "foreign",
    "infer_sharing",
    "laws",
    "subject",
    "zoo",
]
