"""Sharing as data: which agent owns which copy of a parameter leaf."""

from functional_marl._sharing.slot_map import Sharing as Sharing
from functional_marl._sharing.spec import SharingSpec as SharingSpec
from functional_marl._sharing.spec import resolve as resolve

__all__ = ["Sharing", "SharingSpec", "resolve"]
