"""The nodes' texts and help pages in other languages."""

from __future__ import annotations

import json
import re

import pytest
from talk.client import Client

from locales import texts

LANGUAGES = texts.LANGUAGES
# As they are in every language.
ALIKE = {"clip", "eta", "lora"}
NUMBER = r"[0-9]*\.?[0-9]+(?:e-\d+)?"
KEPT = rf"\b(?:lora|attention|full|paper(?=:)|as set|auto|float32|imagic)\b|{NUMBER}"


@pytest.fixture(scope="module")
def originals(server) -> texts.Texts:
    with Client(server.url) as client:
        return texts.english(client.get("/object_info"))


def test_there_are_the_languages_that_we_speak() -> None:
    assert {"ja", "ko", "zh", "zh-TW"} <= set(LANGUAGES)


@pytest.mark.parametrize("language", LANGUAGES)
def test_translation_is_whole_and_names_nothing_that_is_gone(
    originals: texts.Texts, language: str
) -> None:
    told = texts.translated(language)
    assert set(told) ^ set(originals) == set()
    assert [name for name, text in told.items() if not text.strip()] == []
    copied = [n for n, text in told.items() if text.lower() == originals[n].lower()]
    assert [n for n in copied if originals[n].lower() not in ALIKE] == []


def test_every_translation_follows_the_english_of_today(originals: texts.Texts) -> None:
    late = {language: texts.stale(language, originals) for language in LANGUAGES}
    # Translate what is named, then: python tests/locales/texts.py LANGUAGE NAME ...
    assert {language: names for language, names in late.items() if names} == {}


def test_a_changed_english_text_is_found_in_every_language(originals: texts.Texts) -> None:
    name = "ImagicFinetuneModel.inputs.learning_rate.tooltip"
    changed = originals | {name: originals[name] + " Another rate."}
    assert {language: texts.stale(language, changed) for language in LANGUAGES} == dict.fromkeys(
        LANGUAGES, [name]
    )


@pytest.mark.parametrize("language", LANGUAGES)
def test_numbers_and_choices_of_a_tooltip_stand_in_its_translation(
    originals: texts.Texts, language: str
) -> None:
    told = texts.translated(language)
    lost = {
        name: missing
        for name, text in originals.items()
        if name.endswith(".tooltip")
        and (missing := set(re.findall(KEPT, text)) - words(told[name]))
    }
    assert lost == {}


def words(text: str) -> set[str]:
    """What a translation says in Latin letters and digits."""
    return set(re.findall(rf"as set|[a-z]+[0-9]*|{NUMBER}", text))


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_host_hands_out_the_translation(client: Client, language: str) -> None:
    served = client.get("/i18n")[language]["nodeDefs"]
    assert served == json.loads((texts.LOCALES / language / "nodeDefs.json").read_text("utf-8"))


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_help_page_has_the_sections_and_links_of_the_english_one(
    originals: texts.Texts, language: str
) -> None:
    told = texts.translated(language)
    for name in (n for n in originals if n.startswith("docs.")):
        assert shape(told[name]) == shape(originals[name]), f"{language}: {name}"


def shape(page: str) -> list[str]:
    """Headings, rows of tables, list items, pictures and code of a page, without their words."""
    marks = r"^(#+|\||- |    )|!\[[^\]]*\](\([^)]*\))"
    return ["".join(filter(None, found)) for found in re.findall(marks, page, re.MULTILINE)]
