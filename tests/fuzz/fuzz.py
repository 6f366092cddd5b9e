"""Fuzzes one reader with atheris: python -m tests.fuzz.fuzz READER SECONDS FOLDER. `make fuzz` does
so for all.

FOLDER/corpus/READER grows and is taken up again; a find is written to FOLDER/find-READER-*, and the
exit status is not 0.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(
    include=[
        "training",
        "data_tools",
        "dnnlib",
        "open_eg3d",
        "zipfile",
        "PIL",
        "pickletools",
        "json",
    ]
):
    from dnnlib.console import LONGEST_LINE, UserError, one_line
    from tests.fuzz.readers import Readers

# Of the clock: code under atheris runs several times slower, beside whatever else the machine does.
SLOWEST_SECONDS, MEMORY_MB, LONGEST_BYTES = 60, 2048, 1 << 16


def main() -> None:
    """Run until the time is over or something is found."""
    name, seconds, folder = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
    corpus = folder / "corpus" / name
    corpus.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        readers = Readers(Path(scratch))
        for index, content in enumerate(readers.seeds(name)):
            (corpus / f"seed{index}").write_bytes(content)
        read = readers.all[name]

        def check(content: bytes) -> None:
            try:
                read(content)
            except UserError as error:
                if not 10 < len(one_line(str(error))) < LONGEST_LINE + 100:
                    raise RuntimeError("the message is no line") from error

        options = [
            f"-max_total_time={seconds}",
            f"-timeout={SLOWEST_SECONDS}",
            f"-rss_limit_mb={MEMORY_MB}",
            f"-max_len={LONGEST_BYTES}",
        ]
        atheris.Setup(
            [sys.argv[0], *options, f"-artifact_prefix={folder}/find-{name}-", str(corpus)], check
        )
        atheris.Fuzz()


if __name__ == "__main__":
    main()
