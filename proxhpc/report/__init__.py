"""Writes the report of a run, as JSON and as an HTML page, and loads it."""

from pydantic import ValidationError

from proxhpc.assemble.examples import read_examples
from proxhpc.corpus.disk import write_atomic, writing
from proxhpc.errors import StopError, UserError
from proxhpc.faults import fault_point
from proxhpc.report.build import build_report, run_account
from proxhpc.report.model import AccountBase, Report, RunAccount
from proxhpc.run.paths import RunDir


def write_report(run: RunDir) -> Report:
    """Write the page and then the JSON, whose presence means that the run is finished."""
    report = build_report(run)
    _write_page(run, report)
    write_atomic(run.report_json, f"{report.to_json()}\n".encode("ascii"))
    fault_point("report written")
    return report


def write_account(run: RunDir) -> RunAccount:
    """Write only the page, of a run that is not merged yet."""
    account = run_account(run)
    _write_page(run, account)
    return account


def _write_page(run: RunDir, report: AccountBase) -> None:
    from proxhpc.report.html import report_page  # jinja2: only to write a report

    with writing(run.report):
        run.report.mkdir(parents=True, exist_ok=True)
    write_atomic(run.report_html, report_page(report, read_examples(run)).encode("utf-8"))


def load_report(run: RunDir) -> Report:
    """The report that `write_report` wrote. UserError when there is none yet."""
    try:
        return Report.model_validate_json(run.report_json.read_bytes())
    except FileNotFoundError:
        raise UserError(
            f"{run.root} has no report yet",
            hint=f"proxhpc status {run.root} shows its progress",
        ) from None
    except ValidationError as error:
        raise StopError(
            f"{run.report_json} is damaged", hint=f"write it again: proxhpc report {run.root}"
        ) from error
