"""What is compiled here, and whether it computes what the references do: python -m torch_utils.ops
[--json].
"""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import asdict
from typing import Any

import click
import torch

from dnnlib.console import UserError, run_cli
from torch_utils.ops import builder, library, self_check


def collect(device: library.Device = "cpu") -> dict[str, Any]:
    """How the library for `device` was built, the state of every operator, and the checks that
    fail.
    """
    built = library.details(device)
    assert built is not None
    report: dict[str, Any] = {"build": asdict(built), "operators": {}, "mismatches": []}
    errors: dict[str, list[float]] = defaultdict(list)
    for operator, check in self_check.checks(torch.device(device)):
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
    reference; where there is a GPU, those for CUDA as well.

    The status is 1 if they differ or are not available.
    """
    if not library.load():
        raise UserError(
            library.failure()
            or f"{library.VARIABLE}=reference: the compiled operators are not in use, nothing to"
            " compare"
        )
    report = collect()
    if torch.cuda.is_available():
        report["cuda"] = collect("cuda") if library.load("cuda") else None
    reports = [part for part in (report, report.get("cuda")) if part]
    if as_json:
        click.echo(json.dumps(report, indent=1))
    else:
        for part in reports:
            show(part)
    mismatches = sum(len(part["mismatches"]) for part in reports)
    if mismatches:
        raise UserError(
            f"{mismatches} checks differ from the reference; set"
            f" {library.VARIABLE}=reference and report this"
        )
    if "cuda" in report and report["cuda"] is None:
        raise UserError(library.failure("cuda") or "the CUDA operators are not in use")


if __name__ == "__main__":
    run_cli(main)
