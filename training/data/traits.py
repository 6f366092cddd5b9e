"""True traits of pictures, where a data set knows them, as `dataset_tool.py heads` does.

They stand in dataset.json beside the labels: {"labels": [...], "traits": {"names": [T names],
"pictures": {NAME: [T numbers], ...}}}.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dnnlib.console import UserError
from training.data.files import LABEL_FILE, DataFiles, parse_json


@dataclass(frozen=True)
class Traits:
    """Numbers (one per name) of pictures by file name."""

    names: tuple[str, ...]
    rows: dict[str, list[float]]

    def of(self, pictures: Sequence[str], renamed: Sequence[str] | None = None) -> Traits:
        """Those of some pictures, which may be called otherwise from now on."""
        pairs = zip(pictures, renamed or pictures, strict=True)
        return Traits(self.names, {new: self.rows[old] for old, new in pairs if old in self.rows})

    def as_json(self) -> str:
        """The value of "traits" in dataset.json, a picture per line."""
        rows = (f"{json.dumps(name)}: {json.dumps(row)}" for name, row in self.rows.items())
        return f'{{"names": {json.dumps(self.names)}, "pictures": {{\n' + ",\n".join(rows) + "\n}}"


def read_traits(files: DataFiles, listing: str | None = None) -> Traits | None:
    """Traits in dataset.json, at the top or as `listing`; None where there are none.

    Raises:
        UserError: if they are not of their form.
    """
    listing = listing or files.find(LABEL_FILE)
    if listing is None:
        return None
    where = files.where(listing)
    content = parse_json(files.text(listing), where)
    if not isinstance(content, dict) or "traits" not in content:
        return None
    folder = listing.rpartition("/")[0]
    try:
        names, pictures = content["traits"]["names"], content["traits"]["pictures"]
        rows = {
            files.resolve(folder, name, by=listing): _numbers(row, len(names))
            for name, row in pictures.items()
        }
        if len({str(name) for name in names}) < len(names):
            raise ValueError("a name stands twice")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        reason = f" ({error})" if isinstance(error, ValueError) else ""
        raise UserError(
            f'{where}: its "traits" are not of the form {{"names": [...], "pictures": {{NAME:'
            f" [numbers]}}}}{reason}; write them again with `dataset_tool.py traits`"
        ) from error
    return Traits(tuple(str(name) for name in names), rows)


def _numbers(row: Any, count: int) -> list[float]:
    if not isinstance(row, list) or len(row) != count:
        raise ValueError(f"a picture has not {count} numbers")
    if not all(isinstance(value, float) and math.isfinite(value) for value in row):
        raise ValueError("a trait is not a finite number")
    return row
