"""The page of a package index: links and pictures are absolute, or absent while the repository has no address."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from tools.package_page import page, urls

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
ANYWHERE = "https://example.org/team/functional_marl"
TARGETS = re.compile(r"\]\(([^)\s]+)\)")


def test_with_an_address_all_links_are_absolute() -> None:
    before, after = TARGETS.findall(README), TARGETS.findall(page(README, ANYWHERE))
    assert len(before) == len(after) > 5
    for path, url in zip(before, after, strict=True):
        assert url == f"{ANYWHERE}/{'raw' if path.endswith(('.png', '.svg')) else 'blob'}/main/{path}"


def test_without_an_address_there_are_no_links() -> None:
    text = page(README, "")
    assert TARGETS.findall(text) == []
    assert "![" not in text
    assert "docs/torchrl.md lists" in text


def test_code_and_absolute_links_stay() -> None:
    text = "[a](b.md) [c](https://example.org) [d](#e)\n\n```python\nf[x](y)\n```\n"
    assert page(text, "") == text.replace("[a](b.md)", "a")
    assert page(text, ANYWHERE) == text.replace("b.md", f"{ANYWHERE}/blob/main/b.md")


def test_urls_come_from_the_address() -> None:
    assert urls("") == {}
    assert all(url.startswith(ANYWHERE) for url in urls(ANYWHERE).values())


def test_there_is_one_setting() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    hook = settings["tool"]["hatch"]["metadata"]["hooks"]["custom"]
    assert (ROOT / hook["path"]).is_file()
    assert re.fullmatch(r"(https://\S+[^/])?", hook["repository"])
    assert "urls" not in settings["project"]
    assert set(settings["project"]["dynamic"]) == {"readme", "urls"}
