"""What the command line takes: its commands and their options."""

import argparse
from pathlib import Path

from proxhpc import __version__

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
    adapt.add_argument(
        "--processes", type=int, metavar="N", help="train in so many (one for each GPU)"
    )
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
