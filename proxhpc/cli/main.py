"""Runs a command: parse, call, print. A command imports what it needs itself."""

import argparse
import gc
import shlex
import sys
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from proxhpc.account.quantity import quantity
from proxhpc.cli.options import parser
from proxhpc.errors import ProxError, UserError

if TYPE_CHECKING:
    from collections.abc import Callable

    from proxhpc.launch.launch import Run
    from proxhpc.outputs import OutputModel
    from proxhpc.preview import RefinerChoice
    from proxhpc.run.paths import RunDir

_Document = TypeVar("_Document", bound="OutputModel")
MIN_RAM = 16 << 20  # bytes, for finding duplicates
DEMOS = ("demo", "demo-rules")  # manifests whose launch ends with a document before and after


def main(argv: list[str] | None = None) -> int:
    """Run one command and return its exit status; docs/cli.md lists them."""
    before = gc.get_threshold()
    gc.set_threshold(100_000)  # commands start sooner: imports make no garbage
    try:
        try:
            return _run(argv)
        finally:
            gc.set_threshold(*before)
            sys.stdout.flush()
    except BrokenPipeError:
        sys.stdout = None  # the reader has closed the pipe (`| head`): no flush at exit
        return 0


def _run(argv: list[str] | None) -> int:
    debug = "--debug" in (sys.argv if argv is None else argv)
    try:
        arguments = parser().parse_args(argv)
        return int(COMMANDS[arguments.verb](arguments) or 0)
    except ProxError as error:
        if debug:
            raise
        _log(f"proxhpc: {error}")
        return error.exit_code
    except KeyboardInterrupt:
        print("proxhpc: interrupted; everything committed is kept", file=sys.stderr)
        return 130
    except BrokenPipeError:
        raise
    except OSError as error:  # that no other code explains
        if debug:
            raise
        is_named = error.filename is not None and error.strerror is not None
        reason = f"{error.filename}: {error.strerror}" if is_named else str(error)
        _log(f"proxhpc: {reason}")
        return 1


def _safe(text: object) -> str:
    """Escape control characters: messages may quote logs, paths and documents."""
    from proxhpc.status.terminal import safe

    return "\n".join(map(safe, str(text).split("\n")))


def _plan(arguments: argparse.Namespace) -> int:
    from proxhpc.doctor.needs import examine_needs
    from proxhpc.launch.launch import prepare_run
    from proxhpc.plan.estimate import estimate_run
    from proxhpc.plan.view import render_estimate
    from proxhpc.status.terminal import waiting

    with waiting("reading the inputs") as report:
        run = prepare_run(
            arguments.manifest,
            arguments.site,
            arguments.run,
            freeze=arguments.freeze,
            stage=arguments.stage,
            report=report,
        )
    counts = None
    if run.dir.plan.exists():
        from proxhpc.status.heartbeats import latest_heartbeats
        from proxhpc.status.totals import load_merge, run_counts

        counts = run_counts(load_merge(run.dir), latest_heartbeats(run.dir))
    needs = examine_needs(run.plan.manifest, run.site)
    problems = tuple(
        f"{each.result}; {each.consequence}" for each in needs if each.verdict == "error"
    )
    if arguments.calibrate and not problems:
        from proxhpc.plan.calibrate import calibrate

        calibrate(run.dir, run.plan, run.site, arguments.calibrate, _log)
    estimate = estimate_run(run.plan, run.site, run.dir, counts)
    estimate = estimate.model_copy(update={"problems": problems})
    _show(estimate, render_estimate, arguments.json)
    return 2 if problems else 0


def _launch(arguments: argparse.Namespace) -> int:
    from proxhpc.cluster.slurm import why_unavailable
    from proxhpc.launch.launch import dry_run, prepare_run
    from proxhpc.plan.estimate import estimate_run
    from proxhpc.plan.view import cost_line
    from proxhpc.run.plan import input_notes
    from proxhpc.status.terminal import waiting

    dry = arguments.dry_run
    with waiting("reading the inputs") as report:
        run = prepare_run(
            arguments.manifest, arguments.site, arguments.run, freeze=not dry, report=report
        )
    if dry:
        for phase, script, answer in dry_run(run):
            _say(f"# {phase}\n{script}\n# sbatch --test-only: {answer}\n")
        return 0
    if run.site.name == "auto" and run.site.kind == "local":
        print(f"workers are processes of this machine: {why_unavailable()}")
    _say(f"run directory: {run.dir.root}")
    merged = run.dir.merge_summary.exists()
    estimate = None if merged else estimate_run(run.plan, run.site, run.dir)
    for note in estimate.notes if estimate else input_notes(run.plan, run.dir):
        _say(f"note: {note}")
    if estimate and estimate.cost.basis == "calibration":
        _say(f"refining takes {cost_line(estimate)}")
    return _drive(run)


def _drive(run: "Run") -> int:
    """Advance a run as far as possible here, and show the end; return the exit status."""
    from proxhpc.launch.launch import launch
    from proxhpc.status import Ticker

    try:
        with Ticker(run.dir) as ticker:
            step = launch(run, ticker.tick)
    except KeyboardInterrupt:
        resume = f"`proxhpc launch {shlex.quote(str(run.dir.root))}` resumes the run"
        _log(f"proxhpc: interrupted; what is committed is kept: {resume}")
        return 130
    if step.phase in ("report", "finished"):
        from proxhpc.assemble.examples import read_examples
        from proxhpc.report import load_report
        from proxhpc.report.view import render_report

        if notes := step.message.removesuffix("finished").rstrip():
            _say(notes)
        shown = read_examples(run.dir) if run.plan.manifest.name in DEMOS else ()
        _print(render_report(load_report(run.dir), shown))
    else:
        _say(step.message)
        _say(f"check progress: proxhpc status {run.dir.root}")
    return 0


def _doctor(arguments: argparse.Namespace) -> int:
    from proxhpc.doctor import diagnose, render_diagnosis

    log = _log if arguments.probe else None
    diagnosis = diagnose(arguments.site, arguments.manifest, arguments.run, log)
    _show(diagnosis, render_diagnosis, arguments.json)
    return 0 if diagnosis.launch_would_work else 2


def _cancel(arguments: argparse.Namespace) -> None:
    from proxhpc.launch.launch import cancel
    from proxhpc.prove.layout import ProveDir

    run = _open(arguments)
    if (folder := ProveDir(run.root)).plan.exists():
        from proxhpc.prove.run import cancel_prove

        jobs = cancel_prove(folder)
    else:
        jobs = cancel(run)
    _say(f"cancelled: {', '.join(jobs)}" if jobs else "this run has no jobs")


def _verify(arguments: argparse.Namespace) -> int:
    from proxhpc import verify
    from proxhpc.launch.step import advance_lock

    run = _open(arguments)
    result = verify.verify_run(run, processes=arguments.processes)
    if arguments.json:
        print(result.to_output().to_json())
    else:
        for line in verify.render_verification(run, result):
            _say(line)
    if arguments.repair and not result.intact:
        with advance_lock(run):
            removed = verify.repair(run, result)
        for path in removed:
            _log(f"removed: {path}")
    return 0 if result.intact else 4


def _status(arguments: argparse.Namespace) -> None:
    from proxhpc.cluster.queue import Queue
    from proxhpc.cluster.slurm import is_available
    from proxhpc.status import show_status

    queue = Queue(timeout=10 if arguments.watch else 1) if is_available() else None
    show_status(_open(arguments), watch=arguments.watch, as_json=arguments.json, queue=queue)


def _refine(arguments: argparse.Namespace) -> int:
    from proxhpc.preview import PreviewFormat, read_documents, refine_documents

    if arguments.out is not None:
        return _refine_files(arguments)
    if arguments.field is not None:
        raise UserError(
            "--field is for --out",
            hint="add --out DIR, or name a manifest with corpus.text: --manifest FILE",
        )
    manifest = _refiner_choice(arguments).open()
    if arguments.original:
        with_original = manifest.output.model_copy(update={"original": True})
        manifest = manifest.model_copy(update={"output": with_original})
    if not arguments.files and sys.stdin.isatty():
        what = "one text" if arguments.plain else "JSON lines"
        _log(f"reading {what} until Ctrl-D; to refine files: proxhpc refine FILE")
    files = arguments.files or [Path("-")]
    for folder in filter(Path.is_dir, files):
        raise UserError(f"{folder} is a folder", hint="to refine the files in it, add --out DIR")
    guess = arguments.manifest is None
    documents = read_documents(manifest, files, plain=arguments.plain, guess=guess)
    output: PreviewFormat = "diff" if arguments.diff else "text" if arguments.text else "json"
    return refine_documents(manifest, documents, output, arguments.limit)


def _refiner_choice(arguments: argparse.Namespace) -> "RefinerChoice":
    from proxhpc.preview import RefinerChoice

    names = ("manifest", "engine", "model", "doc_model", "prompt")
    return RefinerChoice(**{name: getattr(arguments, name) for name in names})


def _refine_files(arguments: argparse.Namespace) -> int:
    from proxhpc.folder import plan_folder
    from proxhpc.report import load_report

    for option in ("limit", "plain", "text", "diff", "original"):
        if getattr(arguments, option):
            raise UserError(f"--{option} cannot be combined with --out")
    if not arguments.files or Path("-") in arguments.files:
        raise UserError("--out needs files or folders")
    choice = _refiner_choice(arguments)
    run, lines = plan_folder(arguments.files, arguments.out, arguments.field or "", choice)
    for line in (*lines, f"run directory: {run.dir.root}"):
        _say(line)
    if status := _drive(run):
        return status
    documents = load_report(run.dir).documents
    return int(sum(documents.quarantined.values()) == documents.read)


def _evaluate(arguments: argparse.Namespace) -> None:
    from proxhpc.corpus.disk import write_atomic
    from proxhpc.evaluate import gold, result, systems, view

    manifests = systems.refiner_manifests(
        [*zip_longest(arguments.model, arguments.doc_model)],
        arguments.manifest,
        arguments.rules,
        prompt=arguments.prompt,
        engine=arguments.engine,
    )
    where = tuple(map(gold.parse_condition, arguments.where))
    exclude = tuple(map(gold.parse_condition, arguments.exclude))
    selection = gold.Selection(where, exclude, arguments.limit, arguments.seed, arguments.split)
    fields = gold.GoldFields.parse(arguments.fields)
    records = gold.read_gold(arguments.gold, fields, selection)
    evaluation = result.evaluate(
        manifests, records, arguments.gold, selection, arguments.bootstrap, _log
    )
    if arguments.json == Path("-"):
        print(evaluation.to_json())
        return
    if arguments.json:
        write_atomic(arguments.json, f"{evaluation.to_json()}\n".encode())
    _print(view.render_evaluation(evaluation))


def _adapt(arguments: argparse.Namespace) -> None:
    from proxhpc.spec.load import load_yaml
    from proxhpc.spec.recipe import Recipe
    from proxhpc.spec.shipped import find_file
    from proxhpc.train.adapt import adapt

    if bool(arguments.pairs) == bool(arguments.recipe):
        raise UserError("adapt needs a recipe, or --pairs RAW CLEAN", hint="give one of them")
    if arguments.pairs:
        _adapt_to_pairs(arguments)
        return
    if arguments.minutes is not None or arguments.fields:
        raise UserError("--minutes and --fields are for --pairs", hint="`hours` is in the recipe")
    recipe = load_yaml(find_file("recipe", arguments.recipe), Recipe)
    out = arguments.out.absolute()
    if arguments.site:
        if arguments.processes is not None:
            raise UserError(
                "--processes cannot be combined with --site: a job runs one process for each GPU"
            )
        from proxhpc.spec.site import load_site
        from proxhpc.train.job import submit

        job = submit(recipe, out, load_site(arguments.site), resume=arguments.resume)
        _say(f"job {job}; its log is {out / 'training' / 'log.jsonl'}")
        return
    processes = arguments.processes
    adapted = adapt(recipe, out, resume=arguments.resume, processes=processes, log=_say)
    for name, score in adapted.scores.items():
        print(f"{name:18} {score:.4g}")
    _say(f"model: {out}")


def _adapt_to_pairs(arguments: argparse.Namespace) -> None:
    from proxhpc.evaluate.gold import GoldFields
    from proxhpc.evaluate.view import render_evaluation
    from proxhpc.train.teach import teach
    from proxhpc.train.verdict import usage

    if arguments.site:
        raise UserError("--site cannot be combined with --pairs", hint="they train on this machine")
    if arguments.minutes is not None and arguments.minutes <= 0:
        raise UserError(f"--minutes {arguments.minutes:g}: it must be more than 0")
    raw, clean = arguments.pairs
    verdict = teach(
        raw,
        clean,
        arguments.out.absolute(),
        fields=GoldFields.parse(arguments.fields),
        minutes=arguments.minutes,
        processes=arguments.processes,
        log=_say,
    )
    _print(render_evaluation(verdict.evaluation))
    _say(f"\nverdict: {verdict.advice}\n{verdict.reason}\n")
    _say(usage(verdict, arguments.out))


def _prove(arguments: argparse.Namespace) -> int:
    from proxhpc.launch.launch import prepare_run
    from proxhpc.prove.arms import is_merged, launch_arms
    from proxhpc.prove.layout import ProveDir
    from proxhpc.prove.plan import open_prove
    from proxhpc.prove.run import prove
    from proxhpc.prove.verdict import load_verdict
    from proxhpc.prove.view import render_verdict
    from proxhpc.spec.manifest import load_manifest

    run = prepare_run(arguments.manifest, arguments.site, arguments.run)
    is_run = (arguments.manifest / "plan.json").exists()
    section = None if is_run else load_manifest(arguments.manifest).prove
    if not is_merged(run.dir) and (status := _drive(run) or not is_merged(run.dir)):
        _log("run `proxhpc prove` again when the run is finished")
        return int(status)
    root = run.dir.root
    folder = ProveDir((arguments.out or root.with_name(f"{root.name}-prove")).absolute())
    plan = open_prove(folder, run.dir, section or run.plan.manifest.prove)
    if unfinished := launch_arms(folder, plan, run.site, _log):
        for arm in unfinished:
            _log(f"check progress: proxhpc status {arm.root}")
        _log("run `proxhpc prove` again when these runs are finished")
        return 0
    step = prove(folder, plan, run.site, _log)
    if step.phase == "finished":
        _show(load_verdict(folder), render_verdict, arguments.json)
        _log(f"page: {folder.page}")
    else:
        _log(f"{step.message}; run `proxhpc prove` again to see how far it is")
    return 0


def _annotate(arguments: argparse.Namespace) -> None:
    from proxhpc.annotate.annotate import AnnotateOptions, annotate, open_sources
    from proxhpc.annotate.examples import WindowLimits
    from proxhpc.annotate.view import render_summary
    from proxhpc.evaluate.gold import GoldFields

    if not 0 <= arguments.untouched <= 1:
        raise UserError(f"--untouched {arguments.untouched}: it must be from 0 to 1")
    options = AnnotateOptions(
        dialect=arguments.dialect,
        windows=WindowLimits.parse(arguments.windows),
        untouched=arguments.untouched,
        per_source=arguments.per_source,
        held_out=tuple(arguments.held_out),
        fields=GoldFields.parse(arguments.fields),
        seed=arguments.seed,
    )
    sources = open_sources(arguments.sources, arguments.out, options)
    if not arguments.out.name.endswith(".jsonl.zst"):
        raise UserError(f"--out {arguments.out}: the name of this file must end in .jsonl.zst")
    _show(annotate(sources, arguments.out, options), render_summary, arguments.json)


def _inspect(arguments: argparse.Namespace) -> None:
    from proxhpc.inspect.document import inspect_documents, sample_documents
    from proxhpc.inspect.model import InspectOutput
    from proxhpc.inspect.view import render_inspection
    from proxhpc.status.terminal import make_console

    run = _open(arguments)
    if (arguments.id is None) == (arguments.sample is None):
        raise UserError("inspect takes the id of a document, or --sample N")
    if arguments.outcome and arguments.sample is None:
        raise UserError("--outcome chooses among documents: add --sample N")
    outcome = arguments.outcome or ""
    if arguments.id is not None:
        items = inspect_documents(run, arguments.id)
    else:
        items = sample_documents(run, arguments.sample, outcome, arguments.seed)
    if arguments.json:
        print(InspectOutput(documents=tuple(item.to_output() for item in items)).to_json())
    elif not items:
        print(f"no {outcome} document" if outcome else "no document is refined yet")
    else:
        console = make_console()
        for item in items:
            # A line of a document stays one line here, even on a narrow terminal.
            console.print(render_inspection(item), soft_wrap=True)


def _review(arguments: argparse.Namespace) -> None:
    from proxhpc.review.document import Stratum
    from proxhpc.review.estimate import summarize
    from proxhpc.review.marks import MarksFile
    from proxhpc.review.screen import run_review
    from proxhpc.review.session import ReviewSession
    from proxhpc.review.source import choose_items, open_review_source
    from proxhpc.review.view import render_review

    source = open_review_source(arguments.source)
    marks = MarksFile(arguments.out or source.marks, source.key)
    if not (arguments.summary or arguments.json):
        wanted = Stratum(arguments.outcome, arguments.reason)
        if arguments.id is None:
            items = choose_items(source, arguments.sample, wanted, arguments.seed)
        else:
            items = source.find(arguments.id)
        run_review(ReviewSession(source, items, marks, sampled=arguments.id is None))
    summary = summarize(str(marks.path), marks.marks, source.sizes)
    _show(summary, render_review, arguments.json)


def _memory(text: str) -> int:
    """Bytes of a size with a unit. UserError if it is no size, or too small."""
    from pydantic import TypeAdapter, ValidationError

    from proxhpc.spec.load import Size

    try:
        size: int = TypeAdapter(Size).validate_python(text)
    except ValidationError as error:
        raise UserError(f"--max-ram {text}: {error.errors()[0]['msg']}") from None
    if size < MIN_RAM:
        raise UserError(f"--max-ram {text}: it must be 16MiB or more")
    return size


def _report(arguments: argparse.Namespace) -> None:
    from proxhpc import report
    from proxhpc.report.build import run_account
    from proxhpc.report.model import AccountBase
    from proxhpc.report.view import render_report
    from proxhpc.run.plan import Plan

    run = _open(arguments)
    Plan.load(run)  # the errors of a run that cannot be read are no errors of writing
    is_merged = run.merge_summary.exists()
    account: AccountBase
    try:
        account = report.write_report(run) if is_merged else report.write_account(run)
    except UserError as error:
        # The run may lie on a read-only file system.
        if is_merged and not run.report_json.exists():
            raise
        _log(f"proxhpc: the report was not rewritten: {error.message}")
        account = report.load_report(run) if is_merged else run_account(run)
    _show(account, render_report, arguments.json)


def _worker(arguments: argparse.Namespace) -> None:
    from proxhpc.cluster import tasks

    print(tasks.refine_task(str(_open(arguments).root), arguments.number, arguments.of))


def _merge(arguments: argparse.Namespace) -> None:
    from proxhpc.cluster import tasks

    memory = None if arguments.max_ram is None else _memory(arguments.max_ram)
    if arguments.out is not None:
        _merge_variant(arguments, memory)
        return
    if any(v is not None for v in (arguments.manifest, arguments.policy, arguments.threshold)):
        raise UserError("--with, --policy and --threshold make another corpus: add --out DIR")
    root, number, of = str(_open(arguments).root), arguments.number, arguments.of
    processes = arguments.processes
    if arguments.phase:
        if not 0 <= number < of:
            raise UserError(f"--number {number} --of {of}: --number must be from 0 to {of - 1}")
        print(tasks.merge_phase_task(root, arguments.phase, number, of, processes, memory))
        return
    if (number, of) != (0, 1):
        raise UserError("--number and --of select a share of a phase: add --phase")
    print(tasks.merge_task(root, processes, memory))


def _merge_variant(arguments: argparse.Namespace, memory: int | None) -> None:
    from proxhpc.launch import variant
    from proxhpc.run.plan import Plan

    if arguments.phase:
        raise UserError("--phase cannot be combined with --out")
    run, out = _open(arguments), arguments.out.absolute()
    manifest = variant.variant_manifest(
        run, arguments.manifest, arguments.policy, arguments.threshold
    )
    if reason := variant.why_programs_may_differ(Plan.load(run).manifest, manifest):
        print(f"a new run might get other programs: {reason}", file=sys.stderr)
    summary = variant.merge_variant(
        run, out, manifest, processes=arguments.processes, memory=memory
    )
    documents, parts = quantity(summary.written, "document"), quantity(len(summary.parts), "part")
    _say(f"{documents} in {parts}: {out}")


def _advance(arguments: argparse.Namespace) -> None:
    from proxhpc.launch.control_job import run_control, step_name
    from proxhpc.launch.step import take_step

    _say(run_control(str(_open(arguments).root), step_name(take_step)))


def _schema(arguments: argparse.Namespace) -> None:
    from proxhpc.spec.shipped import schema_file

    print(schema_file(arguments.kind).read_text("utf-8"), end="")


def _init(arguments: argparse.Namespace) -> None:
    from proxhpc.init import copies

    if arguments.kind == "site":
        from proxhpc.init.site import propose_site

        path = arguments.file or Path("site.yaml")
        copies.write_new(path, propose_site)
        _say(f"wrote {path}; read it, then check it: proxhpc doctor {path}")
        return
    suffix = ".sbatch" if arguments.kind == "sbatch" else ".yaml"
    path = arguments.file or Path(f"{arguments.name}{suffix}")
    variables = copies.copy_shipped(arguments.kind, arguments.name, path)
    then = f"; then see what it would do: proxhpc plan {path}"
    _say(f"wrote {path}{then if arguments.kind == 'manifest' else ''}")
    if variables:
        print(f"set these variables, or write values in their place: {', '.join(variables)}")


_COMMANDS = (
    *(_init, _plan, _launch, _doctor, _cancel, _verify, _status, _refine, _evaluate, _annotate),
    *(_adapt, _prove, _inspect, _report, _review, _worker, _merge, _advance, _schema),
)
COMMANDS: "dict[str, Callable[[argparse.Namespace], int | None]]" = {
    command.__name__.removeprefix("_"): command for command in _COMMANDS
}


def _say(text: str) -> None:
    print(_safe(text), flush=True)


def _log(text: str) -> None:
    print(_safe(text), file=sys.stderr, flush=True)


def _open(arguments: argparse.Namespace) -> "RunDir":
    from proxhpc.run.paths import RunDir

    return RunDir(arguments.run.absolute())


def _show(document: _Document, render: "Callable[[_Document], object]", as_json: bool) -> None:
    print(document.to_json()) if as_json else _print(render(document))


def _print(renderable: object) -> None:
    from proxhpc.status.terminal import make_console

    make_console().print(renderable)
