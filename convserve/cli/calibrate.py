"""convserve calibrate: measure this machine, so that plans are chosen by its own speeds."""

import argparse
from dataclasses import asdict
from typing import Any

from convserve.cli.arguments import add_command, count
from convserve.cli.output import print_json
from convserve.progress import ProgressBar

__all__ = ["register", "run"]


def register(commands: Any) -> None:
    """Add the command."""
    parser = add_command(
        commands,
        "calibrate",
        help="measure this machine's speeds, from which plans are chosen, and store them (some seconds)",
        example="convserve calibrate\nconvserve calibrate --dry-run --json",
    )
    parser.add_argument("--threads", type=count, metavar="N", help="threads of a run (default: all of this process)")
    parser.add_argument("--dry-run", action="store_true", help="print what was measured without storing it")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Measure, store, print."""
    from convserve.engine.calibrate import MEASUREMENTS, calibrate
    from convserve.engine.team import thread_count
    from convserve.kernels import dispatch
    from convserve.plan.costs import RATES, shipped_table
    from convserve.plan.stored import write_costs

    isa, threads = dispatch.active(), thread_count(args.threads)
    table = shipped = shipped_table(isa)
    with ProgressBar("speeds measured", total=len(MEASUREMENTS) + 1, unit="speeds") as bar:
        for measured in calibrate(isa, threads):
            table = measured
            bar.advance(1)
    path = None if args.dry_run else write_costs(table)
    if args.json:
        print_json({"file": str(path) if path else None, **asdict(table)})
        return
    print(f"{isa} on {table.machine}, {threads} thread(s), {table.measured}")
    print(f"{'':<14} {'measured':>12} {'shipped':>12}")
    for name in RATES:
        print(f"{name:<14} {getattr(table, name):>12.4g} {getattr(shipped, name):>12.4g}")
    print(f"stored in {path}" if path else "not stored")
