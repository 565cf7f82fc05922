"""The photograph of the examples, as the pack puts it where Load Image looks."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from examples.parts import IMAGE
from machine.host_process import Server
from talk.client import Client


@pytest.fixture
def module(pack):
    return pack.nodes.photograph


def test_a_server_with_the_pack_lists_it(server: Server, client: Client, module) -> None:
    (images, _) = client.get("/object_info/LoadImage")["LoadImage"]["input"]["required"]["image"]
    assert IMAGE in images
    assert (server.base / "input" / IMAGE).read_bytes() == module.PHOTOGRAPH.read_bytes()


def test_a_file_of_its_name_is_left_as_it_is(module, tmp_path: Path) -> None:
    (tmp_path / IMAGE).write_bytes(b"the user's")
    module.offer_photograph(tmp_path)
    assert [file.read_bytes() for file in tmp_path.iterdir()] == [b"the user's"]


def test_where_it_cannot_be_written_that_is_only_told(module, tmp_path: Path, caplog) -> None:
    with caplog.at_level(logging.INFO):
        module.offer_photograph(tmp_path / "none")
    assert "no photograph for the example workflows" in caplog.text


def test_it_is_small_and_its_licence_lies_beside_it(module) -> None:
    assert module.PHOTOGRAPH.stat().st_size < 60_000
    assert "CC0" in (module.PHOTOGRAPH.parent / "README.md").read_text("utf-8")
