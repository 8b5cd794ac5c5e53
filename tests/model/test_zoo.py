"""Each bundled model has weights, a card, and terms that its file states."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from unet_batch.errors import CheckpointError
from unet_batch.model import checkpoint, zoo

MOST_BYTES = 34_000_000  # the tree travels to GPU machines beside its packages


def test_weights_and_cards_are_those_of_the_table() -> None:
    expected = {f"{name}{suffix}" for name in zoo.BUNDLED for suffix in (".safetensors", ".md")}
    assert set(os.listdir(zoo.WEIGHTS)) == expected
    sizes = {name: os.path.getsize(zoo.resolve(name)) for name in zoo.BUNDLED}
    assert sum(sizes.values()) <= MOST_BYTES, sizes


@pytest.mark.parametrize("name", zoo.BUNDLED)
def test_a_file_states_its_name_and_its_terms(name: str) -> None:
    spec = checkpoint.identify(zoo.resolve(name)).spec
    assert spec.name == name
    assert spec.terms == zoo.BUNDLED[name].terms != "", "run: python -m scripts.set_terms"


@pytest.mark.parametrize("name", zoo.BUNDLED)
def test_a_card_names_data_and_terms_and_what_it_was_tried_on_and_is_not_for(name: str) -> None:
    model = zoo.resolve(name)
    card = Path(model).with_suffix(".md").read_text(encoding="utf-8")
    assert f"| terms | {zoo.BUNDLED[name].terms} |" in card
    for section in ("Data", "Tried on", "Not for", "Terms"):
        assert f"\n## {section}\n\n" in card, section
    assert zoo.card_points(model, "Tried on")
    assert zoo.card_points(model, "Not for")


def test_the_default_is_the_first_of_the_table() -> None:
    assert zoo.resolve(None) == zoo.resolve(next(iter(zoo.BUNDLED)))


def test_an_unknown_name_is_told_the_others() -> None:
    with pytest.raises(CheckpointError, match="fasst: no such model file") as caught:
        zoo.resolve("fasst")
    assert caught.value.hint == f"bundled models: {', '.join(zoo.BUNDLED)}"


class TestPointsOfACard:
    def test_end_with_their_section(self, tmp_path: Path) -> None:
        card = "# M\n\n## Not for\n\n* snow,\n  rain\n* night\n\nMore words.\n\n## Tried on\n\n* sun"
        (tmp_path / "m.md").write_text(card)
        model = str(tmp_path / "m.safetensors")
        assert zoo.card_points(model, "Not for") == ["snow, rain", "night"]
        assert zoo.card_points(model, "Tried on") == ["sun"]
        assert zoo.card_points(model, "Data") == []

    def test_show_the_words_of_a_link_alone(self, tmp_path: Path) -> None:
        (tmp_path / "m.md").write_text("## Not for\n\n* commercial work, see [Terms](#terms) [2]\n")
        points = zoo.card_points(str(tmp_path / "m.safetensors"), "Not for")
        assert points == ["commercial work, see Terms [2]"]

    def test_without_a_card_there_are_none(self, tmp_path: Path) -> None:
        assert zoo.card_points(str(tmp_path / "m.safetensors"), "Not for") == []
        (tmp_path / "m.md").write_bytes(b"\xff\xfe")
        assert zoo.card_points(str(tmp_path / "m.safetensors"), "Not for") == []
