"""The files of onnxruntime-web (Microsoft, MIT), from its npm package."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from dnnlib.console import UserError
from dnnlib.files import cache_dir, temporary_dir

PACKAGE, VERSION = "onnxruntime-web", "1.30.0"
# On the CPU, on one thread: several need headers that a plain file server does not send; and on the
# graphics processor. A page loads one of the two.
FILES = (
    "ort.wasm.min.js",
    "ort-wasm-simd-threaded.mjs",
    "ort-wasm-simd-threaded.wasm",
    "ort.webgpu.min.js",
    "ort-wasm-simd-threaded.asyncify.mjs",
    "ort-wasm-simd-threaded.asyncify.wasm",
)
LICENCE = "LICENSE.txt"
NOTICE = f"{PACKAGE} {VERSION}, Copyright (c) Microsoft Corporation, MIT License\n"


def runtime_files() -> list[Path]:
    """The files, from the cache; at the first use npm fetches them into it.

    Raises:
        UserError: if they are not there and cannot be fetched.
    """
    folder = cache_dir() / f"{PACKAGE}-{VERSION}-webgpu"
    if not folder.exists():
        _fetch(folder)
    return [folder / name for name in (*FILES, LICENCE)]


def _fetch(folder: Path) -> None:
    beside_python = str(Path(sys.executable).parent)
    npm = shutil.which("npm", path=os.pathsep.join([beside_python, os.environ.get("PATH", "")]))
    if npm is None:
        raise UserError(
            f"the page needs {PACKAGE}, which npm fetches once; run: pip install"
            " 'open-eg3d[onnx,web]'"
        )
    with temporary_dir(folder.parent) as scratch:
        command = [npm, "install", "--prefix", scratch, "--no-save", "--no-audit", "--no-fund"]
        done = subprocess.run(
            [*command, "--loglevel=error", f"{PACKAGE}@{VERSION}"],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            reason = " ".join(done.stderr.split())[:200]
            raise UserError(
                f"npm cannot fetch {PACKAGE} {VERSION}: {reason}; check the connection: it is"
                f" needed this once, then {folder} holds the files"
            )
        chosen = Path(scratch) / "chosen"
        chosen.mkdir()
        for name in FILES:
            shutil.copy(Path(scratch) / "node_modules" / PACKAGE / "dist" / name, chosen)
        (chosen / LICENCE).write_text(NOTICE, encoding="utf-8")
        if not folder.exists():  # another process may have been faster
            chosen.replace(folder)
