"""docs/equip_model.py: which directions are kept, and where what was measured is written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from docs import equip_model
from docs.equip_model import BEGIN, END, change_of, quality, write_into
from tests.docs.test_docs import ROOT


def test_directions_that_leak_or_hardly_change_are_not_kept() -> None:
    names, all_names = ["age", "beard"], ("beard", "unread", "age")
    changes = {"age": np.array([0.1, 9.0, 1.0]), "beard": np.array([-0.8, 0.0, 0.4])}
    own, leakage = change_of("age", names, changes, all_names)
    assert (own, leakage) == pytest.approx((1.0, 0.1))  # of others that are kept alone
    assert quality("age", names, changes, all_names) > 0
    assert quality("beard", names, changes, all_names) < 0  # the wrong way
    changes["beard"] = np.array([0.8, 0.0, 0.4])
    assert change_of("beard", names, changes, all_names)[1] == pytest.approx(0.5)
    assert quality("beard", names, changes, all_names) == pytest.approx(-0.3)
    assert quality("beard", ["beard"], changes, all_names) > 0


def test_passages_are_written_between_their_marks(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"a\n{BEGIN}old\n{END}b\n{BEGIN}older\n{END}c\n")
    write_into(page, 1, "new")
    assert page.read_text() == f"a\n{BEGIN}old\n{END}b\n{BEGIN}new\n{END}c\n"
    write_into(page, 0, "x\ny")
    assert page.read_text() == f"a\n{BEGIN}x\ny\n{END}b\n{BEGIN}new\n{END}c\n"


def test_the_page_has_both_passages() -> None:
    text = (ROOT / "docs" / "inversion.md").read_text(encoding="utf-8")
    assert text.count(BEGIN) == text.count(END) == 2
    assert set(equip_model.WANTED) <= set(known_traits())


def known_traits() -> tuple[str, ...]:
    """Names of the built-in heads' traits, as the code spells them."""
    from data_tools.heads import traits

    text = Path(traits.__file__).read_text(encoding="utf-8")
    hair = ("hair_black", "hair_blond", "hair_grey")
    return tuple(name for name in equip_model.WANTED if name in text or name in hair)
