"""What is compiled here, and whether it computes what the references do: python -m torch_utils.ops
[--json].
"""

from __future__ import annotations

import importlib
import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import click

from dnnlib.console import UserError, run_cli
from torch_utils import ops
from torch_utils.ops import builder, library

MODULES = ("bias_act", "upfirdn2d", "filtered_lrelu", "modulation", "render_rays", "decode_points")


def self_checks() -> Iterator[tuple[str, library.SelfCheck]]:
    """The checks of all operators, by the operator's name."""
    for name in MODULES:
        for check in getattr(
            importlib.import_module(f"{ops.__name__}.{name}"), "self_checks", lambda: ()
        )():
            yield name, check


def collect() -> dict[str, Any]:
    """How the library was built, the state of every operator, and the checks that fail."""
    built = library.details()
    assert built is not None
    report: dict[str, Any] = {"build": asdict(built), "operators": {}, "mismatches": []}
    errors: dict[str, list[float]] = defaultdict(list)
    for operator, check in self_checks():
        errors[operator].append(check.error / check.tolerance)
        if not check.error <= check.tolerance:
            report["mismatches"].append(
                {"check": check.name, "error": check.error, "tolerance": check.tolerance}
            )
    report["operators"] = {
        name: {"checks": len(values), "worst_of_tolerance": max(values)}
        for name, values in errors.items()
    }
    return report


def show(report: dict[str, Any]) -> None:
    """Print the report for people."""
    build = report["build"]
    click.echo(f"library   {build['library']}")
    click.echo(
        f"compiler  {build['version']} ({build['compiler']}), {build['seconds']:.0f} s, torch"
        f" {build['torch']}"
    )
    arch = builder.arch_of(build["flags"])
    click.echo(f"arch      {arch} ({builder.ARCH_VARIABLE} chooses another)")
    click.echo(f"flags     {' '.join(build['flags'])}")
    for name, row in report["operators"].items():
        click.echo(
            f"{name:20} {row['checks']:4} checks against the reference, largest error"
            f" {row['worst_of_tolerance']:.2f} of its tolerance"
        )
    for row in report["mismatches"]:
        click.echo(
            f"MISMATCH  {row['check']}: error {row['error']:.2g}, tolerance {row['tolerance']:.2g}"
        )


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--json", "as_json", is_flag=True, help="Machine-readable.")
def main(as_json: bool) -> None:
    """Show which operators are compiled, where and how, and compare each with its plain PyTorch
    reference.

    The status is 1 if they differ or cannot be had.
    """
    if not library.load():
        raise UserError(
            library.failure()
            or f"{library.VARIABLE}=reference: the compiled operators are not in use, nothing to"
            " compare"
        )
    report = collect()
    if as_json:
        click.echo(json.dumps(report, indent=1))
    else:
        show(report)
    if report["mismatches"]:
        raise UserError(
            f"{len(report['mismatches'])} checks differ from the reference; set"
            f" {library.VARIABLE}=reference and report this"
        )


if __name__ == "__main__":
    run_cli(main)
