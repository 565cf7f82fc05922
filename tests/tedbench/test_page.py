"""The page of blind choices in a real browser: what is clicked is what comes out."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page
from talk.editor import browsing

from tedbench import answers, page, protocol
from tedbench.benchmark import Task
from tedbench.pictures import RUN, keep_all
from tedbench.store import Store

EDITS = 10


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A run of ten edits: twenty choices, one of whose sentences tries to be more than text."""
    out = tmp_path_factory.mktemp("run") / "out"
    protocol.begin(out, RUN)
    text = "A photo of <b>pet</b> </script><script>document.title='broken'</script> & {}"
    edits = [Task(Path(f"pet{i}.png"), text.replace("{}", str(i))) for i in range(EDITS)]
    keep_all(Store(out), [Task(e.picture, f"pet {i}") for i, e in enumerate(edits)])
    for edit, plain in zip(edits, Store(out).names(), strict=True):
        record = out / "records" / plain / "imagic.json"
        record.write_text(json.dumps(json.loads(record.read_text()) | {"text": edit.text}))
    assert page.write_page(Store(out), RUN) == 2 * EDITS
    return out


@pytest.fixture
def opened(folder: Path, chromium: str) -> Iterator[Page]:
    with browsing(chromium) as browser:
        tab = browser.new_page(viewport={"width": 1280, "height": 860})
        tab.set_default_timeout(20_000)
        complaints: list[str] = []
        asked: list[str] = []
        tab.on("console", lambda message: complaints.append(message.text))
        tab.on("pageerror", lambda error: complaints.append(str(error)))
        tab.on("request", lambda request: asked.append(request.url))
        tab.on("dialog", lambda dialog: dialog.accept())
        tab.goto((folder / "page" / "index.html").as_uri())
        yield tab
        assert complaints == []
        assert {url.partition(":")[0] for url in asked} <= {"file", "blob"}


def current(tab: Page) -> str:
    """The token of the choice that is shown, found by its picture on the left."""
    source = tab.locator("#left img").get_attribute("src")
    data = tab.evaluate("() => data.trials.map((t) => [t.files[1], t.token])")
    return dict(data)[source]


def rates(tab: Page) -> dict[str, list[str]]:
    rows = tab.locator("#rates tbody tr").evaluate_all(
        "(rows) => rows.map((row) => [...row.cells].map((cell) => cell.textContent))"
    )
    return {row[0]: row[1:] for row in rows}


def expected(chosen: int, of: int) -> list[str]:
    low, high = answers.wilson(chosen, of)
    return [f"{chosen / of:.1%}", f"{low:.1%} to {high:.1%}", str(of)]


def test_three_pictures_and_the_sentence_are_shown(opened: Page) -> None:
    assert opened.title() == "Which is the better edit?"
    assert "<b>pet</b> </script>" in opened.locator("#text").inner_text()
    opened.wait_for_function("() => [...document.images].every((i) => i.complete)")
    widths = opened.evaluate("() => [...document.images].map((i) => i.naturalWidth)")
    assert widths == [16, 16, 16]
    assert not opened.locator("#rates").is_visible()


def test_planted_preference_comes_out_and_a_reload_keeps_it(
    opened: Page, folder: Path, tmp_path: Path
) -> None:
    key = page.load_key(folder)["trials"]
    other = {"left": "right", "right": "left"}
    seen = {"sdedit": 0, "ddib": 0}
    for i in range(2 * EDITS):
        assert opened.locator("#count").inner_text() == f"{i} of {2 * EDITS}"
        about = key[current(opened)]
        seen[about["baseline"]] += 1
        # Imagic over DDIB always, over SDEdit in 7 of 10.
        wins = about["baseline"] == "ddib" or seen["sdedit"] <= 7
        side = about["ours"] if wins else other[about["ours"]]
        if i % 2:
            opened.keyboard.press({"left": "ArrowLeft", "right": "ArrowRight"}[side])
        else:
            opened.locator(f"#{side}").click()
        if i == 11:
            opened.locator("#show").click()
            before = rates(opened)
            assert before["both"][2] == "12"
            assert before["DDIB"] == expected(seen["ddib"], seen["ddib"])
            # Chromium hands what is stored to the next process in its own time: under load, and no
            # person's click after the last one, a reload can come before.
            for _ in range(20):
                opened.reload()
                if rates(opened) == before:
                    break
            assert rates(opened) == before
    assert opened.locator("#end").is_visible() and not opened.locator("#ask").is_visible()
    assert opened.locator("#rates").is_visible()
    shown = rates(opened)
    assert shown == {"SDEdit": expected(7, 10), "DDIB": expected(10, 10), "both": expected(17, 20)}

    with opened.expect_download() as download:
        opened.locator("#download").click()
    file = tmp_path / download.value.suggested_filename
    download.value.save_as(file)
    text = answers.report(folder, [file], page.load_key(folder))
    for name, (rate, interval, of) in shown.items():
        assert f"| {name} | {rate} | {interval} | {of} |" in text


def test_a_choice_can_be_taken_back(opened: Page) -> None:
    assert opened.locator("#back").is_disabled()
    first = current(opened)
    opened.locator("#left").click()
    assert current(opened) != first
    opened.locator("#back").click()
    assert current(opened) == first
    assert opened.locator("#count").inner_text() == f"0 of {2 * EDITS}"


def test_another_person_starts_from_nothing(opened: Page) -> None:
    for _ in range(3):
        opened.keyboard.press("ArrowLeft")
    person = opened.evaluate("() => state.person")
    opened.locator("#restart").click()
    assert opened.locator("#count").inner_text() == f"0 of {2 * EDITS}"
    assert opened.evaluate("() => state.person") != person
    opened.reload()
    assert opened.locator("#count").inner_text() == f"0 of {2 * EDITS}"
