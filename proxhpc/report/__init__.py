"""The account of a run, as JSON, as one page and on the terminal."""

import json
from typing import Any

from proxhpc.assemble.examples import read_examples
from proxhpc.corpus.disk import write_atomic
from proxhpc.errors import StopError, UserError
from proxhpc.faults import fault_point
from proxhpc.report.build import build_report
from proxhpc.report.compute import account
from proxhpc.report.html import page
from proxhpc.report.view import render_account, render_report
from proxhpc.run.paths import RunDir

__all__ = [
    "account",
    "build_report",
    "load_report",
    "page",
    "render_account",
    "render_report",
    "write_report",
]


def write_report(run: RunDir) -> dict[str, Any]:
    """Write the page and, last, the JSON that says the run is finished; the report."""
    report = build_report(run)
    run.report.mkdir(parents=True, exist_ok=True)
    write_atomic(run.report_html, page(report, read_examples(run)).encode("utf-8"))
    # FLOPs outgrow 64 bits, which is where orjson stops.
    write_atomic(run.report_json, f"{json.dumps(report, indent=2)}\n".encode("ascii"))
    fault_point("report written")
    return report


def load_report(run: RunDir) -> dict[str, Any]:
    """What `write_report` wrote. UserError when the run has no report yet."""
    try:
        report: dict[str, Any] = json.loads(run.report_json.read_bytes())
    except FileNotFoundError:
        raise UserError(
            f"{run.root} has no report yet",
            hint=f"proxhpc status {run.root} shows how far it is",
        ) from None
    except ValueError as error:
        raise StopError(
            f"{run.report_json} is damaged", hint=f"write it again: proxhpc report {run.root}"
        ) from error
    return report
