"""Front processes are put around the server: nothing inside it knows of them."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def importers(package: str) -> set[str]:
    """Files of the server, outside of the package, that import it."""
    return {
        str(path.relative_to(ROOT))
        for path in (ROOT / "server").rglob("*.py")
        if "fronts" not in path.parts
        and re.search(rf"^\s*(from|import) {re.escape(package)}\b", path.read_text(), re.MULTILINE)
    }


def test_only_the_composition_root_imports_the_fronts() -> None:
    assert importers("headrace.server.fronts") == {"server/app.py"}


def test_only_composition_roots_import_what_they_share() -> None:
    assert importers("headrace.server.serving") == {"server/app.py"}
    assert "headrace.server.serving" in (ROOT / "server/fronts/front.py").read_text()
