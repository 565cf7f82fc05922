"""The blind two-way choices as a page: Imagic against each baseline, the paper's figure 8."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import random
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from tedbench.protocol import Protocol
from tedbench.store import Store, write

TEMPLATE = Path(__file__).with_name("page.html")
OURS, BASELINES = "imagic", ("sdedit", "ddib")
NAMES = {"sdedit": "SDEdit", "ddib": "DDIB"}


@dataclass(frozen=True)
class Trial:
    """One choice. ``token`` says nothing of what is chosen from."""

    token: str
    edit: str
    photograph: str
    text: str
    baseline: str
    ours_left: bool


def trials(store: Store, protocol: Protocol) -> list[Trial]:
    """Every edit with every baseline, where both pictures are there, in a random order.

    Sides and order follow from the protocol's seed and the names alone, so that edits which are
    added later change nothing about those that people have judged.
    """
    made = []
    for name in store.names():
        for baseline in BASELINES:
            both = {method: protocol.settings(method) for method in (OURS, baseline)}
            if not all(store.is_done(name, method, settings) for method, settings in both.items()):
                continue
            about = store.record(name, OURS)
            chance = random.Random(f"{protocol.seed}/{name}/{baseline}")
            token, ours_left = f"{chance.getrandbits(64):016x}", chance.random() < 0.5
            made.append(Trial(token, name, about["photograph"], about["text"], baseline, ours_left))
    return sorted(made, key=lambda trial: trial.token)


def write_page(store: Store, protocol: Protocol) -> int:
    """Write `page/index.html`, its pictures, and `page_key.json`; return the number of choices.

    Raises:
        OSError: the folder cannot be written.
    """
    page = store.folder / "page"
    made = trials(store, protocol)
    shutil.rmtree(page / "pictures", ignore_errors=True)
    shown = []
    for trial in made:
        methods = (OURS, trial.baseline) if trial.ours_left else (trial.baseline, OURS)
        sources = [store.input(trial.photograph)]
        sources += [store.picture(trial.edit, m, protocol.shown(m)) for m in methods]
        files = []
        for place, source in enumerate(sources):
            # A name of its own for each use: Imagic's picture is the one that would come twice.
            word = hashlib.sha256(f"{trial.token}/{place}".encode()).hexdigest()[:20]
            files.append(f"pictures/{word}.png")
            write(page / files[-1], _without_text(source))
        shown.append({"token": trial.token, "text": trial.text, "files": files})
    key = {t.token: [BASELINES.index(t.baseline), "left" if t.ours_left else "right"] for t in made}
    data = {
        "run": _digest(protocol),
        "trials": shown,
        "baselines": [NAMES[b] for b in BASELINES],
        # Not for the eye of who looks into the file; the page needs it for its sums.
        "key": base64.b64encode(json.dumps(key).encode()).decode(),
    }
    text = TEMPLATE.read_text(encoding="utf-8")
    script = json.dumps(data).replace("</", "<\\/")
    write(page / "index.html", text.replace("/* data */ null", script).encode())
    about = {t.token: {"edit": t.edit, "baseline": t.baseline,
                       "ours": "left" if t.ours_left else "right"} for t in made}  # fmt: skip
    key_file = {"run": data["run"], "trials": about}
    write(store.folder / "page_key.json", json.dumps(key_file, indent=1).encode())
    return len(made)


def _digest(protocol: Protocol) -> str:
    return hashlib.sha256(repr(protocol).encode()).hexdigest()[:16]


def _without_text(picture: Path) -> bytes:
    """The picture anew: ComfyUI writes into each how it was made."""
    with Image.open(picture) as opened:
        plain = Image.new("RGB", opened.size)
        plain.paste(opened.convert("RGB"))
    content = io.BytesIO()
    plain.save(content, "PNG")
    return content.getvalue()


def load_key(folder: Path) -> dict[str, Any]:
    """What ``write_page`` wrote for the reading of answers."""
    return json.loads((folder / "page_key.json").read_text(encoding="utf-8"))
