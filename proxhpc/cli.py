"""The command line: parse, call, print. Imports wait until a command needs them."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from proxhpc import __version__
from proxhpc.errors import ProxError, UserError

if TYPE_CHECKING:
    from proxhpc.manifest import Manifest
    from proxhpc.rundir import RunDir

LEAST_RAM = 16 << 20  # bytes for matching
STORY = """\
Refine pre-training corpora on Slurm clusters with small language models that write programs.

  proxhpc doctor SITE         whether a launch would work there, and how
  proxhpc plan MANIFEST       what would happen; submits nothing
  proxhpc launch MANIFEST     plan once, then refine, merge and report; run it again to go on
  proxhpc refine FILE --diff  what a model makes of some documents, right here
  proxhpc status RUN          how far a run is
  proxhpc evaluate GOLD       how good a model is, where people said what is to be kept
  proxhpc annotate SOURCE     examples to train a refiner on, from a run or gold data
  proxhpc adapt RECIPE        teach a model to write programs, from examples
  proxhpc inspect RUN ID      one document before and after, with its programs
  proxhpc verify RUN          every checksum and count of a run, proved again
"""


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    top = argparse.ArgumentParser(
        prog="proxhpc", description=STORY, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    top.add_argument("--version", action="version", version=f"proxhpc {__version__}")
    top.add_argument("--debug", action="store_true", help="show the traceback of an error")
    verbs = top.add_subparsers(dest="verb", required=True, metavar="COMMAND")

    plan = verbs.add_parser("plan", help="say what a launch would do; submit nothing")
    _manifest(plan)
    _json(plan)
    plan.add_argument(
        "--freeze", action="store_true", help="make the run directory too, for slurm/*.sbatch"
    )

    launch = verbs.add_parser("launch", help="plan once, then take the run forward")
    _manifest(launch)
    launch.add_argument(
        "--dry-run",
        action="store_true",
        help="show the batch scripts and what Slurm says of them; submit and write nothing",
    )

    doctor = verbs.add_parser("doctor", help="say whether a launch would work, and how")
    doctor.add_argument("site", metavar="SITE", nargs="?", default="auto", help="file or name")
    doctor.add_argument("--manifest", type=Path, help="look at its models and run directory, too")
    doctor.add_argument("--run", type=Path, metavar="DIR", help="where runs are to be")
    _json(doctor)

    status = verbs.add_parser("status", help="show how far a run is")
    _run(status)
    status.add_argument("--watch", action="store_true", help="keep looking until it has ended")
    _json(status)

    cancel = verbs.add_parser("cancel", help="end a run's jobs; launch goes on later")
    _run(cancel)

    verify = verbs.add_parser("verify", help="prove every checksum and count of a run again")
    _run(verify)
    verify.add_argument("--processes", type=int, default=1, metavar="N", help="how many at a time")
    verify.add_argument("--repair", action="store_true", help="take away what is damaged")
    _json(verify)

    refine = verbs.add_parser("refine", help="refine documents right here, for a first look")
    refine.add_argument(
        "files",
        type=Path,
        nargs="*",
        metavar="FILE",
        help="corpus files, or any other file as one document; - or none: JSON lines on stdin",
    )
    _refiner(refine, "stages, engine, policy and fields from here")
    refine.add_argument("--plain", action="store_true", help="stdin is one document of plain text")
    refine.add_argument("--limit", type=int, metavar="N", help="the first N documents only")
    shape = refine.add_mutually_exclusive_group()
    shape.add_argument("--text", action="store_true", help="print the refined text and no more")
    shape.add_argument("--diff", action="store_true", help="show each document before and after")

    adapt = verbs.add_parser("adapt", help="teach a model to write programs, from examples")
    adapt.add_argument("recipe", type=Path, metavar="RECIPE", help="recipe (YAML)")
    adapt.add_argument("--out", type=Path, required=True, metavar="DIR", help="model directory")
    adapt.add_argument("--resume", action="store_true", help="go on with the training in DIR")
    adapt.add_argument("--site", help="site file or name: submit it as a Slurm job there")

    evaluate = verbs.add_parser("evaluate", help="score a refiner on gold data, right here")
    evaluate.add_argument(
        "gold", type=Path, nargs="+", metavar="GOLD", help="JSON lines of gold records"
    )
    _refiner(evaluate, "stages, engine and policy from here")
    _fields(evaluate)
    evaluate.add_argument(
        "--where", action="append", default=[], metavar="KEY=VALUE", help="only records with this"
    )
    evaluate.add_argument(
        "--exclude", action="append", default=[], metavar="KEY=VALUE", help="no record with this"
    )
    evaluate.add_argument(
        "--split", choices=["train", "validation"], help="only hosts of this split"
    )
    evaluate.add_argument("--limit", type=int, metavar="N", help="N of the records, at random")
    evaluate.add_argument("--seed", type=int, default=0, help="of --limit and --bootstrap (0)")
    evaluate.add_argument(
        "--bootstrap",
        type=int,
        default=1000,
        metavar="N",
        help="resamplings for the intervals (1000); 0 for none",
    )
    evaluate.add_argument(
        "--json", type=Path, metavar="FILE", help="write one JSON document there; - to print it"
    )
    _annotate_options(verbs.add_parser("annotate", help="make examples to train a refiner on"))

    inspect = verbs.add_parser("inspect", help="show a document before and after")
    _run(inspect)
    inspect.add_argument("id", metavar="ID", nargs="?", help="a document's id, or FILE:POSITION")
    inspect.add_argument("--sample", type=int, metavar="N", help="instead: N documents at random")
    inspect.add_argument(
        "--status", choices=["kept", "edited", "dropped", "quarantined"], help="of these only"
    )
    inspect.add_argument("--seed", type=int, default=0, help="choose other ones")
    _json(inspect)

    report = verbs.add_parser("report", help="write the report of a merged run again")
    _run(report)
    _json(report)

    flops = verbs.add_parser("flops", help="account for a run's compute, finished or not")
    _run(flops)
    _json(flops)

    worker = verbs.add_parser("worker", help="refine shards until none is left (what jobs run)")
    _run(worker)
    worker.add_argument("--number", type=int, default=0, help="which of the workers (from 0)")
    worker.add_argument("--of", type=int, default=1, help="how many workers there are")

    merge = verbs.add_parser("merge", help="assemble the corpus of a refined run")
    _run(merge)
    merge.add_argument("--processes", type=int, default=1, metavar="N", help="how many at a time")
    merge.add_argument(
        "--max-ram", metavar="SIZE", help="memory for matching duplicates, as in 64MiB (1GiB)"
    )
    merge.add_argument(
        "--phase",
        choices=["sketch", "match", "scatter", "write"],
        help="this phase only, as in elements of an array; merge without it when all are done",
    )
    merge.add_argument("--number", type=int, default=0, help="with --phase: which share (from 0)")
    merge.add_argument("--of", type=int, default=1, help="with --phase: how many shares there are")
    merge.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="instead: another corpus there, from the same ledgers; the run is only read",
    )
    merge.add_argument(
        "--with",
        type=Path,
        dest="manifest",
        metavar="MANIFEST",
        help="with --out: another policy, dedup, output or seed from here",
    )
    merge.add_argument(
        "--policy", metavar="FILE", help="with --out: policy from here (YAML), or: reference"
    )
    merge.add_argument(
        "--threshold", type=float, metavar="T", help="with --out: dedup.near.threshold"
    )

    advance = verbs.add_parser("advance", help="take a run's next step (what control jobs run)")
    _run(advance)

    schema = verbs.add_parser("schema", help="print the JSON Schema of manifests, sites or recipes")
    schema.add_argument("kind", choices=["manifest", "site", "recipe"])
    return top


def main(argv: list[str] | None = None) -> int:
    """Run one command; the exit status (see `proxhpc.errors` for those of errors)."""
    arguments = parser().parse_args(argv)
    try:
        return int(COMMANDS[arguments.verb](arguments) or 0)
    except ProxError as error:
        if arguments.debug:
            raise
        print(f"proxhpc: {_safe(error)}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("proxhpc: interrupted; what was committed stays", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader has seen enough (`| head`); Python would complain again at exit.
        sys.stdout = None
        return 0
    except OSError as error:
        if arguments.debug:
            raise
        print(f"proxhpc: {_safe(_reason(error))}", file=sys.stderr)
        return 1


def _safe(text: object) -> str:
    """Lines of which nothing steers a terminal: messages may quote logs, paths and documents."""
    from proxhpc.status.terminal import safe

    return "\n".join(map(safe, str(text).split("\n")))


def _reason(error: OSError) -> str:
    """An error that nobody explained, in one line."""
    if error.filename is None or error.strerror is None:
        return str(error)
    return f"{error.filename}: {error.strerror}"


def _plan(arguments: argparse.Namespace) -> None:
    from proxhpc.estimate import estimate, render
    from proxhpc.launch import prepare

    run = prepare(arguments.manifest, arguments.site, arguments.run, freeze=arguments.freeze)
    counts = None
    if run.dir.plan.exists():
        from proxhpc.report import so_far

        counts = so_far(run.dir)
    result = estimate(run.plan, run.site, run.dir, counts)
    _print_json(result) if arguments.json else _print(render(result))


def _launch(arguments: argparse.Namespace) -> None:
    from proxhpc.launch import launch, prepare
    from proxhpc.status import Ticker

    if arguments.dry_run:
        _dry_run(arguments)
        return
    run = prepare(arguments.manifest, arguments.site, arguments.run)
    print(_safe(f"run directory: {run.dir.root}"))
    with Ticker(run.dir) as ticker:
        step = launch(run, ticker.tick)
    print(_safe(step.message))
    if step.phase in ("report", "finished"):
        from proxhpc.report import load_report
        from proxhpc.report import render as render_report

        _print(render_report(load_report(run.dir)))
        print(_safe(f"report: {run.dir.report_html}"))
    else:
        print(_safe(f"look at it with: proxhpc status {run.dir.root}"))


def _dry_run(arguments: argparse.Namespace) -> None:
    from proxhpc.launch import prepare, rehearse

    run = prepare(arguments.manifest, arguments.site, arguments.run, freeze=False)
    for phase, script, said in rehearse(run):
        print(_safe(f"# {phase}\n{script}\n# sbatch --test-only: {said}\n"))


def _doctor(arguments: argparse.Namespace) -> int:
    from proxhpc import doctor

    site, folder, models = doctor.subject(arguments.site, arguments.manifest, arguments.run)
    findings = list(doctor.examine(site, folder, models))
    result = doctor.summary(findings)
    _print_json(result) if arguments.json else _print(doctor.render(findings))
    return 0 if result["launch_would_work"] else 2


def _cancel(arguments: argparse.Namespace) -> None:
    from proxhpc.launch import cancel

    gone = cancel(_open(arguments))
    print(_safe(f"ended: {', '.join(gone)}") if gone else "no job of this run was there")


def _verify(arguments: argparse.Namespace) -> int:
    from proxhpc import verify
    from proxhpc.advance import alone

    _at_least(1, "--processes", arguments.processes)
    run = _open(arguments)
    proof = verify.verify(run, processes=arguments.processes)
    if arguments.json:
        _print_json(proof.to_dict(run))
    else:
        for line in verify.lines(run, proof):
            print(_safe(line))
    if arguments.repair and not proof.good:
        with alone(run):
            taken = verify.repair(run, proof)
        for path in taken:
            print(f"taken away: {_safe(path)}", file=sys.stderr)
    return 0 if proof.good else 4


def _status(arguments: argparse.Namespace) -> None:
    from proxhpc.cluster.slurm import Queue, available
    from proxhpc.status import show

    queue = Queue() if available() else None
    show(_open(arguments), watch=arguments.watch, as_json=arguments.json, queue=queue)


def _asked(arguments: argparse.Namespace) -> "Manifest":
    from proxhpc.here import manifest_of

    return manifest_of(
        arguments.manifest,
        engine=arguments.engine,
        model=arguments.model,
        doc_model=arguments.doc_model,
        prompt=arguments.prompt,
    )


def _refine(arguments: argparse.Namespace) -> int:
    from proxhpc import here

    if arguments.limit is not None:
        _at_least(1, "--limit", arguments.limit)
    manifest = _asked(arguments)
    items = here.items(manifest, arguments.files or [Path("-")], plain=arguments.plain)
    form: here.Form = "diff" if arguments.diff else "text" if arguments.text else "json"
    return here.refine(manifest, items, form, arguments.limit)


def _evaluate(arguments: argparse.Namespace) -> None:
    import json

    from proxhpc.corpus.disk import write_atomic
    from proxhpc.evaluate import gold, result, view

    if arguments.limit is not None:
        _at_least(1, "--limit", arguments.limit)
    _at_least(0, "--bootstrap", arguments.bootstrap)
    _at_least(0, "--seed", arguments.seed)
    manifest = _asked(arguments)
    where, exclude = (
        tuple(map(gold.condition, given)) for given in (arguments.where, arguments.exclude)
    )
    selection = gold.Selection(where, exclude, arguments.limit, arguments.seed, arguments.split)
    fields = gold.GoldFields.parse(arguments.fields)
    records = gold.read_gold(arguments.gold, fields, selection)
    found = result.evaluate(manifest, records, arguments.gold, selection, arguments.bootstrap)
    if arguments.json == Path("-"):
        _print_json(found.to_dict())
        return
    if arguments.json:
        write_atomic(arguments.json, json.dumps(found.to_dict(), indent=2).encode() + b"\n")
    _print(view.render(found))


def _adapt(arguments: argparse.Namespace) -> None:
    from proxhpc.adapt.adapt import adapt
    from proxhpc.adapt.recipe import load_recipe

    recipe, out = load_recipe(arguments.recipe), arguments.out.absolute()
    if arguments.site:
        from proxhpc.adapt.job import submit
        from proxhpc.site import load_site

        job = submit(recipe, out, load_site(arguments.site), resume=arguments.resume)
        print(_safe(f"job {job}; it writes {out / 'training' / 'log.jsonl'}"))
        return
    adapted = adapt(recipe, out, resume=arguments.resume, say=lambda line: print(_safe(line)))
    for name, score in adapted.scores.items():
        print(f"{name:18} {score:.4g}")
    print(_safe(f"model: {out}"))


def _annotate(arguments: argparse.Namespace) -> None:
    from proxhpc.adapt.annotate import Options, annotate
    from proxhpc.adapt.examples import Cut
    from proxhpc.adapt.sources import open_sources
    from proxhpc.adapt.view import render
    from proxhpc.evaluate.gold import GoldFields

    _share("--untouched", arguments.untouched)
    if arguments.per_source is not None:
        _at_least(1, "--per-source", arguments.per_source)
    options = Options(
        dialect=arguments.dialect,
        cut=Cut.parse(arguments.windows),
        untouched=arguments.untouched,
        per_source=arguments.per_source,
        held_out=tuple(arguments.held_out),
        fields=GoldFields.parse(arguments.fields),
        seed=arguments.seed,
    )
    sources = open_sources(arguments.sources, options.fields, options.dialect)
    summary = annotate(sources, arguments.out, options)
    _print_json(summary.to_dict()) if arguments.json else _print(render(summary))


def _inspect(arguments: argparse.Namespace) -> None:
    from proxhpc.inspect import show, show_sample

    run = _open(arguments)
    if (arguments.id is None) == (arguments.sample is None):
        raise UserError("inspect takes the id of a document, or --sample N")
    if arguments.id is not None:
        show(run, arguments.id, as_json=arguments.json)
    else:
        show_sample(
            run,
            arguments.sample,
            status=arguments.status or "",
            seed=arguments.seed,
            as_json=arguments.json,
        )


def _memory(text: str) -> int:
    """Bytes of a size with a unit. UserError if it is none, or less than matching needs."""
    from pydantic import TypeAdapter, ValidationError

    from proxhpc.config import Size

    try:
        size: int = TypeAdapter(Size).validate_python(text)
    except ValidationError as error:
        raise UserError(f"--max-ram {text}: {error.errors()[0]['msg']}") from None
    if size < LEAST_RAM:
        raise UserError(f"--max-ram {text}: it must be 16MiB or more")
    return size


def _report(arguments: argparse.Namespace) -> None:
    from proxhpc.report import load_report, render, write_report

    run = _open(arguments)
    try:
        report = write_report(run)
    except UserError as error:
        # A finished run may be on a file system that can only be read.
        if not (run.merge_summary.exists() and run.report_json.exists()):
            raise
        print(f"proxhpc: the report is not written again: {_safe(error.message)}", file=sys.stderr)
        report = load_report(run)
    _print_json(report) if arguments.json else _print(render(report))


def _flops(arguments: argparse.Namespace) -> None:
    from proxhpc.report import account, render_account

    result = account(_open(arguments))
    _print_json(result) if arguments.json else _print(render_account(result))


def _worker(arguments: argparse.Namespace) -> None:
    from proxhpc.cluster import tasks

    _at_least(0, "--number", arguments.number)
    _at_least(1, "--of", arguments.of)
    print(tasks.refine(str(_open(arguments).root), arguments.number, arguments.of))


def _merge(arguments: argparse.Namespace) -> None:
    from proxhpc.cluster import tasks

    _at_least(1, "--processes", arguments.processes)
    memory = None if arguments.max_ram is None else _memory(arguments.max_ram)
    changes = arguments.manifest, arguments.policy, arguments.threshold
    if arguments.out is not None:
        if arguments.phase:
            raise UserError("--phase is for the merge of the run itself: leave out --out")
        from proxhpc import variant
        from proxhpc.plan import Plan

        run, out = _open(arguments), arguments.out.absolute()
        manifest = variant.manifest_of(run, *changes)
        if told := variant.asked_otherwise(Plan.load(run).manifest, manifest):
            print(f"a new run might get other programs: {told}", file=sys.stderr)
        made = variant.merge(run, out, manifest, processes=arguments.processes, memory=memory)
        print(_safe(f"{made.written:,} documents in {len(made.parts):,} parts: {out}"))
        return
    if any(change is not None for change in changes):
        raise UserError("--with, --policy and --threshold make another corpus: add --out DIR")
    root = str(_open(arguments).root)
    if arguments.phase:
        number, of = arguments.number, arguments.of
        if not 0 <= number < of:
            raise UserError(f"--number {number} --of {of}: of {of} shares the first is 0")
        print(tasks.merge_share(root, arguments.phase, number, of, arguments.processes, memory))
        return
    if (arguments.number, arguments.of) != (0, 1):
        raise UserError("--number and --of are shares of a phase: add --phase")
    print(tasks.merge(root, arguments.processes, memory))


def _advance(arguments: argparse.Namespace) -> None:
    from proxhpc.advance import advance_job

    print(_safe(advance_job(str(_open(arguments).root))))


def _schema(arguments: argparse.Namespace) -> None:
    from proxhpc import manifest, site
    from proxhpc.adapt import recipe

    kinds = {"manifest": manifest, "site": site, "recipe": recipe}
    _print_json(kinds[arguments.kind].json_schema())


COMMANDS = {
    "plan": _plan,
    "launch": _launch,
    "doctor": _doctor,
    "cancel": _cancel,
    "verify": _verify,
    "status": _status,
    "refine": _refine,
    "evaluate": _evaluate,
    "annotate": _annotate,
    "adapt": _adapt,
    "inspect": _inspect,
    "report": _report,
    "flops": _flops,
    "worker": _worker,
    "merge": _merge,
    "advance": _advance,
    "schema": _schema,
}


def _at_least(least: int, option: str, given: int) -> None:
    if given < least:
        raise UserError(f"{option} {given}: it must be {least} or more")


def _share(option: str, given: float) -> None:
    if not 0 <= given <= 1:
        raise UserError(f"{option} {given}: it must be from 0 to 1")


def _manifest(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "manifest", type=Path, metavar="MANIFEST", help="manifest (YAML), or a run to go on with"
    )
    verb.add_argument("--site", help="site file or name, or auto (else the manifest's)")
    verb.add_argument("--run", type=Path, metavar="DIR", help="run directory (else run_dir)")


def _refiner(verb: argparse.ArgumentParser, from_manifest: str) -> None:
    verb.add_argument("--manifest", type=Path, help=from_manifest)
    verb.add_argument(
        "--model", help="else: model of the chunk stage, or embedded (no model: the rules)"
    )
    verb.add_argument("--doc-model", metavar="MODEL", help="model of a doc stage before it")
    verb.add_argument("--prompt", help="prompt style (the model's own, else prox-llama2)")
    verb.add_argument("--engine", choices=["rules", "transformers", "vllm"])


def _fields(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "--fields",
        default="",
        metavar="NAME=KEY,…",
        help="where records hold noisy, gold, labels, text, keep, unanimous, id, source, host, url",
    )


def _annotate_options(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "sources",
        type=Path,
        nargs="+",
        metavar="SOURCE",
        help="a refined run (its programs teach), or a file of gold records",
    )
    verb.add_argument(
        "--out", type=Path, required=True, metavar="FILE", help="examples (.jsonl.zst)"
    )
    verb.add_argument("--dialect", choices=["prox", "line"], default="prox")
    verb.add_argument(
        "--windows",
        default="64,6000",
        metavar="CUT",
        help="windows of at most LINES or LINES,CHARACTERS, or document: whole ones (64,6000)",
    )
    verb.add_argument(
        "--untouched",
        type=float,
        default=1.0,
        metavar="SHARE",
        help="most windows without an edit among those of training (1: any)",
    )
    verb.add_argument(
        "--per-source", type=int, metavar="N", help="most training documents of one source"
    )
    verb.add_argument(
        "--held-out",
        type=Path,
        nargs="+",
        default=[],
        metavar="FILE",
        help="keep training clear of these files' hosts and of near-duplicates",
    )
    _fields(verb)
    verb.add_argument("--seed", type=int, default=0, help="of what is drawn by lot")
    _json(verb)


def _run(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("run", type=Path, metavar="RUN", help="run directory")


def _json(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--json", action="store_true", help="print one JSON document")


def _open(arguments: argparse.Namespace) -> "RunDir":
    from proxhpc.rundir import RunDir

    return RunDir(arguments.run.absolute())


def _print(renderable: object) -> None:
    from proxhpc.status.terminal import make_console

    make_console().print(renderable)


def _print_json(data: object) -> None:
    import json

    # Not orjson: FLOPs go beyond 64 bits, and whatever steers a terminal must be escaped.
    print(json.dumps(data, indent=2))


if __name__ == "__main__":
    sys.exit(main())
