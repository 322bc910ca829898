"""The README as a package index shows it, and the project's URLs: a metadata hook of hatchling, run at each build.

Relative links of the README work in a checkout, but not on a package index. ``repository`` in ``pyproject.toml``,
``[tool.hatch.metadata.hooks.custom]``, is the one place with the address of the public repository. With an address, all
relative links become absolute and the package gets its URLs. Without one, links become plain text and pictures are left
out, so that no page has a dead link.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

BLOCK = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(!?)\[([^\]]*)\]\((?!https?:|#)([^)\s]+)\)")


def page(readme: str, repository: str) -> str:
    """The README with absolute links, or, without a repository, with their texts alone. Code blocks stay."""

    def rewritten(match: re.Match[str]) -> str:
        picture, text, path = match.groups()
        if not repository:
            return "" if picture else text
        return f"{picture}[{text}]({repository}/{'raw' if picture else 'blob'}/main/{path})"

    parts = BLOCK.split(readme)  # code blocks are at the odd positions
    text = "".join(part if k % 2 else LINK.sub(rewritten, part) for k, part in enumerate(parts))
    return re.sub(r"\n{3,}", "\n\n", text)


def urls(repository: str) -> dict[str, str]:
    """The project's URLs, by the names that package indexes show."""
    if not repository:
        return {}
    blob = f"{repository}/blob/main"
    return {
        "Repository": repository,
        "Documentation": f"{blob}/README.md",
        "Changelog": f"{blob}/CHANGELOG.md",
        "Issues": f"{repository}/issues",
    }


def get_metadata_hook() -> type[Any]:
    """The hook, as hatchling looks it up. hatchling is there at builds alone."""
    from hatchling.metadata.plugin.interface import MetadataHookInterface

    class PackagePage(MetadataHookInterface):
        """Fills in ``readme`` and ``urls``."""

        def update(self, metadata: dict[str, Any]) -> None:
            """Change the metadata in place."""
            repository: str = self.config["repository"].rstrip("/")
            text = Path(self.root, "README.md").read_text(encoding="utf-8")
            metadata["readme"] = {"content-type": "text/markdown", "text": page(text, repository)}
            metadata["urls"] = urls(repository)

    return PackagePage
