"""Ask released libraries for the laws of sharing; write what they break to ``findings/FINDINGS.md``.

    python findings/run.py              # both parts, a few minutes
    python findings/run.py --only torchrl

BenchMARL 1.5.2 needs an older torchrl: it runs in an environment of its own (``--venv``, by default
``.venv-findings``, which is made where it is missing). Law 51 (compilation) is left out: it takes minutes.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import re
import subprocess
import sys
import venv
import warnings
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
PINS = ["torch==2.13.0", "torchrl==0.11.1", "tensordict==0.11.0", "optree", "hydra-core", "tqdm"]
WITHOUT_DEPENDENCIES = ["benchmarl==1.5.2"]
PARTS = {"torchrl": "torchrl_cases", "benchmarl": "benchmarl_cases"}


def ask(part: str, words: str) -> Iterator[dict[str, Any]]:
    """The findings of one library, of the installed release: one dict a violated law."""
    warnings.simplefilter("ignore")
    os.environ["OMP_NUM_THREADS"] = "1"
    sys.path[:0] = [str(HERE), str(ROOT)]
    laws: Any = importlib.import_module("functional_marl.laws")
    module: Any = importlib.import_module(PARTS[part])
    module.LAWS = [name for name, law in laws.FOREIGN.items() if law.number != 51]
    cases = [case for case in module.cases() if words in f"{case[0]} {case[1]}"]
    for k, (name, about, run) in enumerate(cases):
        print(f"[{k + 1}/{len(cases)}] {part}: {name}, {about}", file=sys.stderr, flush=True)
        try:
            report = run()
        except laws.CheckError as error:
            print(f"    could not run: {error}", file=sys.stderr)
            continue
        yield {"asked": True, "laws": [verdict.law for verdict in report if verdict.verdict == "holds"]}
        for verdict in report.violated:
            yield {
                "library": part,
                "release": version(part),
                "class": name,
                "about": about,
                "number": verdict.number,
                "law": verdict.law,
                "case": verdict.case,
                "why": verdict.why.splitlines()[0].partition("): ")[2],
            }


def elsewhere(part: str, words: str, where: Path) -> Iterator[dict[str, Any]]:
    """The same in another environment, which is made if it is missing."""
    python = where / "bin" / "python"
    if not python.exists():
        print(f"making {where}", file=sys.stderr)
        venv.create(where, with_pip=True)
        for extra, packages in (([], PINS), (["--no-deps"], WITHOUT_DEPENDENCIES)):
            subprocess.run([python, "-m", "pip", "install", "--quiet", *extra, *packages], check=True)
    command = [python, str(HERE / "run.py"), "--lines", "--only", part, "--matching", words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            yield json.loads(line)
    if process.returncode:
        raise SystemExit(f"{part}: the run in {where} ended with {process.returncode}")


def symptom(finding: dict[str, Any]) -> tuple[str, ...]:
    """What makes two findings one: numbers, and where parameters are stored, make no difference."""
    # Copies and threads go wrong whatever the network of one agent is.
    own = (finding["about"].startswith("subclass") and finding["number"] not in (33, 50)) or finding["number"] == 45
    kind = finding["about"].split(",")[0] if own else ""
    why = re.sub(r"(params|_empty_net)\.|'[^']*\.[^']*'|[-+]?[0-9][0-9.e+-]*", "", finding["why"])
    # Threads meet anywhere: which exception it is says nothing.
    return finding["library"], finding["class"], kind, finding["law"], "" if finding["number"] == 50 else why


def table(found: list[dict[str, Any]]) -> str:
    """Markdown: one row a class, law and symptom, with the first of the cases that show it."""
    rows: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for finding in found:
        if "law" in finding:
            rows.setdefault(symptom(finding), []).append(finding)
    lines = [
        "| library | release | class | law | smallest case | what was found | cases |",
        "|---|---|---|---|---|---|---|",
    ]
    for same in rows.values():
        first = same[0]
        case = ", ".join(f"{k} {_plain(v)}" for k, v in (first["case"] or {}).items() if k != "seed")
        why = first["why"].replace("|", "\\|")
        lines.append(
            f"| {first['library']} | {first['release']} | `{first['class']}`: {first['about']} "
            f"| {first['number']} {first['law']} | {case} | {why[:240]} | {len(same)} |"
        )
    return "\n".join(lines)


def _plain(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def main() -> None:
    """Run the parts and write the table."""
    parser = argparse.ArgumentParser(description="Which laws of sharing released libraries break.")
    parser.add_argument("--only", choices=list(PARTS), help="one library")
    parser.add_argument("--matching", default="", help="only cases whose words contain this")
    parser.add_argument("--venv", type=Path, default=ROOT / ".venv-findings", help="the environment of BenchMARL")
    parser.add_argument("--out", type=Path, default=HERE / "FINDINGS.md")
    parser.add_argument("--lines", action="store_true", help="print JSON lines, and write nothing")
    options = parser.parse_args()
    if options.lines:
        for finding in ask(options.only, options.matching):
            print(json.dumps(finding), flush=True)
        return
    found: list[dict[str, Any]] = []
    if options.only != "benchmarl":
        found += ask("torchrl", options.matching)
    if options.only != "torchrl":
        found += elsewhere("benchmarl", options.matching, options.venv)
    asked, held = sum("asked" in finding for finding in found), sum(len(f.get("laws", [])) for f in found)
    text = f"""# Findings in the wild

Which laws released libraries break, found by `functional_marl.laws.check` without being told where to look:
{asked} networks were asked, {held} answers were that a law holds. `make findings` writes this page again. A row is
the first case that breaks the law; the last column counts the cases.

{table(found)}
"""
    if options.matching or options.only:
        print(text)
    else:
        options.out.write_text(text, encoding="utf-8")
        print(f"{options.out}: {sum('law' in finding for finding in found)} findings", file=sys.stderr)


if __name__ == "__main__":
    main()
