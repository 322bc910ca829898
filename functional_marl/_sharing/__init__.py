"""Sharing as data: which agent owns which copy of a parameter leaf."""

from functional_marl._sharing.sharing_spec import SharingSpec as SharingSpec
from functional_marl._sharing.sharing_spec import resolve as resolve
from functional_marl._sharing.slot_map import Sharing as Sharing

__all__ = ["Sharing", "SharingSpec", "resolve"]
