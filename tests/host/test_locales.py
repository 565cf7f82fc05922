"""The nodes' texts in other languages."""

from __future__ import annotations

import pytest
from machine.environment import REPOSITORY
from talk.client import Client

LANGUAGES = sorted(folder.name for folder in (REPOSITORY / "locales").iterdir())


@pytest.mark.parametrize("language", LANGUAGES)
def test_translation_is_whole_and_names_nothing_that_is_gone(client: Client, language: str) -> None:
    known = client.get("/object_info")
    ours = {n: i for n, i in known.items() if i["python_module"].endswith("Imagic")}
    translated = client.get("/i18n")[language]["nodeDefs"]
    assert set(translated) == set(ours)
    for name, info in ours.items():
        texts = translated[name]
        for key in ("display_name", "description"):
            assert texts[key].strip() and texts[key] != info[key], name
        inputs = info["input"].get("required", {}) | info["input"].get("optional", {})
        english = {i: options[0]["tooltip"] for i, (_, *options) in inputs.items()}
        english |= {str(place): tip for place, tip in enumerate(info["output_tooltips"])}
        told = {key: one["tooltip"] for key, one in (texts["inputs"] | texts["outputs"]).items()}
        assert set(told) == set(english), name
        assert [k for k, tip in told.items() if not tip.strip() or tip == english[k]] == [], name
