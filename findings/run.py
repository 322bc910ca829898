"""Check released libraries by the laws of sharing, and write what they violate to ``findings/FINDINGS.md``.

    make findings                              # all libraries, with the environments that they need
    make findings ARGS="--only torchrl"        # one library: printed, nothing is written

Libraries with incompatible requirements run in environments of their own, which the Makefile creates. Laws of
compilation are left out: it takes minutes. The exit code is 1 if a finding has no second reading in ``readings.py``,
or if the finding of a reading does not reproduce.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import re
import subprocess
import sys
import warnings
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

from readings import READINGS, TRIED, WITHDRAWN

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
# library: the module with its cases, and the environment that has the library (None: this one)
PARTS: dict[str, tuple[str, str | None]] = {
    "torchrl": ("torchrl_cases", None),
    "benchmarl": ("benchmarl_cases", ".venv-benchmarl"),
    "xuance": ("xuance_cases", ".venv-findings"),
    "DI-engine": ("ding_cases", ".venv-findings"),
    "pymarlzooplus": ("pymarlzooplus_cases", ".venv-findings"),
    "openrl": ("openrl_cases", ".venv-findings"),
}
Finding = dict[str, Any]
READ = {
    (library, kind, law): text
    for library, kinds in READINGS.items()
    for kind, laws in kinds.items()
    for law, text in laws.items()
}


def run_laws(part: str, words: str) -> Iterator[Finding]:
    """The findings in one library, in its installed release: one dict a network, and one a law that it violates."""
    warnings.simplefilter("ignore")
    sys.path[:0] = [str(HERE), str(ROOT)]
    laws: Any = importlib.import_module("functional_marl.laws")
    module: Any = importlib.import_module(PARTS[part][0])
    cases = [case for case in module.cases() if words in f"{case[0]} {case[1]}"]
    for k, (name, about, run) in enumerate(cases):
        print(f"[{k + 1}/{len(cases)}] {part}: {name}, {about}", file=sys.stderr, flush=True)
        subject = {"library": part, "release": version(part), "class": name, "about": about}
        try:
            report = run()
        except laws.CheckError as error:
            print(f"    could not run: {error}", file=sys.stderr)
            continue
        # A law counts once: as of training where it is violated in training alone.
        violated = {verdict.law: verdict for verdict in sorted(report.violated, key=lambda verdict: -verdict.train)}
        yield subject | {"held": len({v.law for v in report if v.verdict == "holds"} - violated.keys())}
        for verdict in violated.values():
            why = verdict.why.splitlines()[0].partition(": ")[2]
            if verdict.law == "threads_agree" and "outputs as alone" not in why:
                why = "in two threads: other outputs than alone"
            found = {"number": verdict.number, "law": verdict.law, "train": verdict.train}
            yield subject | found | {"case": verdict.case, "why": why}


def elsewhere(part: str, words: str) -> Iterator[Finding]:
    """The same, run in the environment that has the library."""
    where = PARTS[part][1]
    python = ROOT / where / "bin" / "python" if where else Path(sys.executable)
    if not python.exists():
        raise SystemExit(f"{part}: {where} is missing: `make findings` creates it")
    command = [python, str(HERE / "run.py"), "--lines", "--only", part, "--matching", words]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "WANDB_MODE": "disabled"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        for line in process.stdout:
            yield json.loads(line)
    if process.returncode:
        raise SystemExit(f"{part}: the run ended with {process.returncode}")


def lines(part: str, words: str) -> None:
    """Print findings as JSON. What the library itself prints goes to stderr."""
    out = sys.stdout
    with contextlib.redirect_stdout(sys.stderr):
        for finding in run_laws(part, words):
            print(json.dumps(finding), file=out, flush=True)


# --- tables -----------------------------------------------------------------------------------------------


def _key(finding: Finding) -> tuple[str, str, str]:
    return finding["library"], finding["class"], finding["law"]


# Laws that fail for every module of one agent, if for one.
_OF_EVERY = ("copies_are_whole", "nothing_is_changed", "threads_agree")
# Where a number is stored, and which it is.
_PLACES = re.compile(r"\[[^]]*\]|\([0-9]+ differ\)|(params|_empty_net)\.|'[^']*\.[^']*'|[-+]?[0-9][0-9.e+-]*")


def _symptom(finding: Finding) -> tuple[str, ...]:
    """Findings with equal keys are one symptom: numbers, and where parameters are stored, make no difference."""
    law, about = finding["law"], finding["about"]
    by_kind = law == "randomness_has_one_meaning" or (about.startswith("subclass") and law not in _OF_EVERY)
    # Threads interfere at any place, so the kind of the exception means nothing.
    why = "" if law == "threads_agree" else _PLACES.sub("", finding["why"])
    return *_key(finding), about.split(",")[0] if by_kind else "", why


def _groups(findings: list[Finding], key: Any) -> list[list[Finding]]:
    groups: dict[Any, list[Finding]] = {}
    for finding in findings:
        groups.setdefault(key(finding), []).append(finding)
    return list(groups.values())


def _case(finding: Finding) -> str:
    parts = {k: v for k, v in (finding["case"] or {}).items() if k != "seed"}
    shown = "; ".join(f"{k} {', '.join(map(str, v)) if isinstance(v, list) else v}" for k, v in parts.items())
    return shown.replace("rows 1", "1 row").replace("rows ", "rows: ")


def _where(finding: Finding) -> list[str]:
    network = f"`{finding['class']}`" + (f": {finding['about']}" if finding["about"] else "")
    law = finding["law"] + (" (training)" if finding["train"] else "")
    return [f"{finding['library']} {finding['release']}", network, law, _case(finding)]


def _table(head: list[str], rows: list[list[Any]]) -> str:
    cells = [[str(cell).replace("|", "\\|") for cell in row] for row in rows]
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *cells])


def in_full(findings: list[Finding]) -> str:
    """A row for each class, law and symptom, with the first case that shows it."""
    rows = [[*_where(one), one["why"][:240], 1 + len(same)] for one, *same in _groups(findings, _symptom)]
    return _table(["library", "network", "law", "smallest case", "what was found", "cases"], rows)


def in_short(findings: list[Finding]) -> str:
    """A row for each class and law, with its second reading."""
    classes = list(dict.fromkeys(_key(one)[:2] for one in findings))
    order = sorted(findings, key=lambda one: (classes.index(_key(one)[:2]), one["number"], one["train"]))
    rows = [[*_where(same[0]), READ[_key(same[0])]] for same in _groups(order, _key)]
    return _table(["library", "network", "law", "smallest case", "what a user meets"], rows)


def counts(found: list[Finding]) -> str:
    """A row for each library: how many networks were checked, how often a law held, and how often it did not."""
    rows = [
        [
            f"{same[0]['library']} {same[0]['release']}",
            sum("held" in one for one in same),
            sum(one.get("held", 0) for one in same),
            sum("law" in one for one in same),
        ]
        for same in _groups(found, lambda one: one["library"])
    ]
    return _table(["library", "networks checked", "a law holds", "a law is violated"], rows)


def page(found: list[Finding]) -> str:
    """``FINDINGS.md``."""
    violated = [one for one in found if "law" in one]
    read = [one for one in violated if _key(one) in READ]
    unread = [one for one in violated if _key(one) not in READ]
    more = f"\n## Without a second reading\n\n{in_full(unread)}\n" if unread else ""
    return f"""# Findings in the wild

Which laws of sharing released libraries violate. `functional_marl.laws.check` found all of this by running their
networks; it was not told where to look. `make findings` creates the environments, runs the checks again, and writes
this page. What a network should do is the library's own claim: arguments such as `share_params`, and what its
documentation promises about them.

{counts(found)}

## What a user meets

{in_short(read)}

## Every symptom

Each row shows the first case of a symptom; the last column counts all its cases.

{in_full(read)}
{more}
## Second readings
{WITHDRAWN}
## Libraries that were looked at
{TRIED}"""


def main() -> int:
    """Check the libraries and write the page."""
    parser = argparse.ArgumentParser(description="Which laws of sharing released libraries violate.")
    parser.add_argument("--only", choices=list(PARTS), help="one library: printed, nothing is written")
    parser.add_argument("--matching", default="", help="only cases whose name or description contains this: printed")
    parser.add_argument("--lines", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.lines:
        lines(options.only, options.matching)
        return 0
    parts = [options.only] if options.only else list(PARTS)
    found = [finding for part in parts for finding in elsewhere(part, options.matching)]
    violated = [one for one in found if "law" in one]
    unread = {_key(one) for one in violated} - READ.keys()
    for key in sorted(unread):
        print(f"no second reading: {key}", file=sys.stderr)
    if options.only or options.matching:
        print(f"{counts(found)}\n\n{in_full(violated)}")
        return 0
    gone = READ.keys() - {_key(one) for one in violated}
    for key in sorted(gone):
        print(f"does not reproduce: {key}", file=sys.stderr)
    (HERE / "FINDINGS.md").write_text(page(found), encoding="utf-8")
    print(f"{len(violated)} findings in {sum('held' in one for one in found)} networks", file=sys.stderr)
    return 1 if unread or gone else 0


if __name__ == "__main__":
    sys.exit(main())
