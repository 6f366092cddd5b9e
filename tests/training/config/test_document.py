"""docs/settings.md is what the declarations say."""

from __future__ import annotations

from pathlib import Path

from training.config.document import document

PAGE = Path(__file__).parents[3] / "docs" / "settings.md"


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text(encoding="utf-8") == document(), (
        "run: python -m training.config.document > docs/settings.md"
    )
