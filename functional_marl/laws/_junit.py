"""Verdicts as JUnit XML, the form in which CI systems read the results of tests."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any
from xml.etree import ElementTree

from functional_marl.laws._verdict import HOLDS, VIOLATED, Verdict

__all__ = ["junit"]

# XML 1.0 has no form for these, and ElementTree writes them as they are.
_FORBIDDEN = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def junit(subject: str, properties: Mapping[str, Any], verdicts: Sequence[Verdict]) -> str:
    """One test suite with a test case for each verdict. What does not apply is skipped, with the reason."""
    found = [verdict.verdict for verdict in verdicts]
    root = ElementTree.Element("testsuites", {"name": "functional_marl.laws"})
    counts = {
        "tests": len(found),
        "failures": found.count(VIOLATED),
        "errors": 0,
        "skipped": len(found) - found.count(VIOLATED) - found.count(HOLDS),
    }
    suite = _add(root, "testsuite", name=subject, **counts)
    listed = _add(suite, "properties")
    for name, value in properties.items():
        _add(listed, "property", name=name, value=value)
    for verdict in verdicts:
        case = _add(suite, "testcase", classname=subject, name=verdict.label)
        if verdict.verdict == VIOLATED:
            failure = _add(case, "failure", message=(verdict.why.splitlines() or [VIOLATED])[0], type="LawViolation")
            failure.text = _plain("\n".join([verdict.statement, verdict.why, verdict.snippet]).strip())
        elif verdict.verdict != HOLDS:
            _add(case, "skipped", message=verdict.why or verdict.verdict)
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ElementTree.tostring(root, encoding="unicode")


def _add(parent: ElementTree.Element, tag: str, **attributes: object) -> ElementTree.Element:
    return ElementTree.SubElement(parent, tag, {name: _plain(value) for name, value in attributes.items()})


def _plain(value: object) -> str:
    """The text without characters that XML has no form for."""
    return _FORBIDDEN.sub("\ufffd", str(value))
