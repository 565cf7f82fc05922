"""What a user reads of the nodes, and of which English text each translation is one."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from machine.environment import REPOSITORY

LOCALES = REPOSITORY / "locales"
DOCS = REPOSITORY / "web" / "docs"
LANGUAGES = sorted(folder.name for folder in LOCALES.iterdir() if folder.is_dir())

Texts = dict[str, str]
"""Name, such as ``ImagicEtaSweep.inputs.start.tooltip`` or ``docs.ImagicEtaSweep`` -> text."""


def english(known: dict[str, Any]) -> Texts:
    """All English texts: of the nodes as ``/object_info`` tells them, and of their help pages."""
    texts: Texts = {}
    for node, info in known.items():
        if not info["python_module"].endswith("Imagic"):
            continue
        texts |= {f"{node}.{key}": info[key] for key in ("display_name", "description")}
        inputs = info["input"].get("required", {}) | info["input"].get("optional", {})
        slots = [("inputs", name, name, told["tooltip"]) for name, (_, told) in inputs.items()]
        outputs = zip(info["output_name"], info["output_tooltips"], strict=True)
        slots += [("outputs", str(i), *both) for i, both in enumerate(outputs)]
        for kind, key, name, tooltip in slots:
            texts |= {
                f"{node}.{kind}.{key}.name": name,
                f"{node}.{kind}.{key}.tooltip": tooltip,
            }
    return texts | {f"docs.{page.stem}": page.read_text("utf-8") for page in DOCS.glob("*.md")}


def translated(language: str) -> Texts:
    """All texts of a language, by the names of the English ones."""
    nodes = json.loads((LOCALES / language / "nodeDefs.json").read_text("utf-8"))
    pages = DOCS.glob(f"*/{language}.md")
    return flat(nodes) | {f"docs.{page.parent.name}": page.read_text("utf-8") for page in pages}


def flat(tree: dict[str, Any], above: str = "") -> Texts:
    """The leaves of a tree, each by the way to it."""
    texts: Texts = {}
    for key, value in tree.items():
        name = f"{above}{key}"
        texts |= flat(value, f"{name}.") if isinstance(value, dict) else {name: value}
    return texts


def digest(text: str) -> str:
    """Which English text a translation is one of."""
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def source_file(language: str) -> Path:
    """Where a language keeps name -> digest of the English text that was translated."""
    return LOCALES / language / "translated_from.json"


def stale(language: str, originals: Texts) -> list[str]:
    """Names of the texts whose English has changed since a language was translated."""
    noted = json.loads(source_file(language).read_text("utf-8"))
    return [name for name, text in originals.items() if noted.get(name) != digest(text)]


def note(language: str, beginnings: list[str], originals: Texts) -> None:
    """Note that a language follows the English of today, of names that begin so; or of all."""
    file = source_file(language)
    noted = json.loads(file.read_text("utf-8")) if file.exists() else {}
    for name, text in originals.items():
        if name.startswith(tuple(beginnings or [""])):
            noted[name] = digest(text)
    kept = {name: noted[name] for name in sorted(originals) if name in noted}
    file.write_text(json.dumps(kept, indent=1) + "\n", "utf-8")
