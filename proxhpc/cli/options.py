"""The command line's commands and their options."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from proxhpc import __version__

ABOUT = (
    "Refine pre-training corpora on Slurm clusters with small language models that write programs."
)
FOR_JOBS = "For jobs and scripts"
"""The group of commands that people do not type; docs/cli.md has them."""
Parser = argparse.ArgumentParser


def parser() -> Parser:
    """The whole command line."""
    top = Parser(
        prog="proxhpc",
        usage="proxhpc [--debug] COMMAND …",
        description="\n".join([ABOUT, *_listing()]),
        epilog="`proxhpc COMMAND --help` lists the options of a command.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=f"proxhpc {__version__}")
    top.add_argument("--debug", action="store_true", help=_DEBUG)
    top.add_argument(
        "--print-completion",
        action=_PrintCompletion,
        choices=["bash", "zsh", "fish"],
        help="print a script that completes commands and options in this shell",
    )
    # The description lists the commands by group, so argparse's own list is suppressed.
    verbs = top.add_subparsers(
        dest="verb", required=True, metavar="COMMAND", prog="proxhpc", help=argparse.SUPPRESS
    )
    for title, commands in _GROUPS.items():
        for name, (about, add_options) in commands.items():
            listed: dict[str, Any] = {} if title == FOR_JOBS else {"help": about}
            verb = verbs.add_parser(name, description=f"{about[0].upper()}{about[1:]}.", **listed)
            add_options(verb)
            _debug(verb)
    return top


_DEBUG = "show the traceback of an error"


def _debug(verb: Parser) -> None:
    # Without a default, or it would overwrite a --debug in front of the command.
    verb.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help=_DEBUG)


class _PrintCompletion(argparse.Action):
    """Prints a shell's completion script."""

    def __call__(self, top: Parser, *arguments: object) -> None:
        import shtab

        _, shell, *_ = arguments
        for verb in _verbs(top).choices.values():
            for action in verb._actions:
                if action.type is Path:
                    action.complete = shtab.FILE  # type: ignore[attr-defined]
        _verbs(top).help = None  # shtab skips what is suppressed
        sys.stdout.write(shtab.complete(top, str(shell)))
        top.exit()


def _verbs(top: Parser) -> "argparse._SubParsersAction[Parser]":
    return next(a for a in top._actions if isinstance(a, argparse._SubParsersAction))


def _listing() -> list[str]:
    """The commands that people type, one on each line."""
    lines = []
    for title, commands in _GROUPS.items():
        if title != FOR_JOBS:
            lines += ["", f"{title}:"]
            lines += [f"  {name:10}{about}" for name, (about, _) in commands.items()]
    return lines


def _doctor(verb: Parser) -> None:
    add = verb.add_argument
    add(
        "site",
        metavar="SITE",
        nargs="?",
        help="site file or name, or auto (default: the manifest's site)",
    )
    add("--manifest", type=Path, help="check what a run of this manifest needs (file or name)")
    add("--run", type=Path, metavar="DIR", help="check this run directory")
    _json(verb)


def _init(verb: Parser) -> None:
    kinds = verb.add_subparsers(dest="kind", required=True, metavar="KIND", help="what to write:")
    for kind in ("manifest", "recipe", "sbatch", "site"):
        noun = "script of a job array" if kind == "sbatch" else kind
        about = f"a copy of a {noun} that comes with proxhpc"
        if kind == "site":
            about = "a site for this cluster, from what Slurm says and accepts"
        writer = kinds.add_parser(kind, help=about, description=f"Write {about}.")
        if kind != "site":
            writer.add_argument("name", metavar="NAME", help="its name; a wrong one lists them")
        default = {"site": "site.yaml", "sbatch": "NAME.sbatch"}.get(kind, "NAME.yaml")
        about = f"file, which must not exist (default: {default})"
        writer.add_argument("file", type=Path, metavar="FILE", nargs="?", help=about)
        _debug(writer)


def _plan(verb: Parser) -> None:
    _manifest(verb)
    verb.add_argument(
        "--freeze",
        action="store_true",
        help="also write the run directory, which slurm/*.sbatch need",
    )
    verb.add_argument(
        "--calibrate",
        type=int,
        metavar="N",
        help="refine N random documents on this machine, or in a job of a Slurm site, and estimate"
        " from them",
    )
    _json(verb)


def _refine(verb: Parser) -> None:
    add = verb.add_argument
    add(
        "files",
        type=Path,
        nargs="*",
        metavar="FILE",
        help="corpus files; any other file is one document; - (the default) reads JSON lines from"
        " standard input; with --out folders, too",
    )
    add(
        "--out",
        type=Path,
        metavar="DIR",
        help="refine all files in a run in DIR, with corpus and report; run it again to resume",
    )
    _refiner(verb, "take stages, engine, policy and fields from this manifest")
    add("--plain", action="store_true", help="read standard input as one plain text")
    add("--limit", type=int, metavar="N", help="refine only the first N documents")
    verb.set_defaults(text=False, field=None, files_before=[])
    form = verb.add_mutually_exclusive_group()
    form.add_argument(
        "--text",
        nargs="?",
        action=_TextOption,
        default=False,
        metavar="FIELD",
        help="print only the refined texts; with --out: the field with the text of JSON lines and"
        " parquet (default: guessed)",
    )
    form.add_argument("--diff", action="store_true", help="show each document before and after")
    form.add_argument(
        "--original",
        action="store_true",
        help="print each raw text, too, as `original_text`, for `proxhpc review`",
    )


class _TextOption(argparse.Action):
    """`--text`, which takes a value only with --out; without it, the value is a file."""

    def __call__(
        self,
        parser: Parser,
        namespace: argparse.Namespace,
        value: object,
        option: str | None = None,
    ) -> None:
        namespace.text, namespace.field = True, value
        namespace.files_before = [*(namespace.files or [])]


def _launch(verb: Parser) -> None:
    _manifest(verb)
    verb.add_argument(
        "--dry-run",
        action="store_true",
        help="show the batch scripts and Slurm's answer to them; submit and write nothing",
    )


def _status(verb: Parser) -> None:
    _run(verb)
    verb.add_argument("--watch", action="store_true", help="update the page until the run ends")
    _json(verb)


def _review(verb: Parser) -> None:
    add = verb.add_argument
    add(
        "source",
        type=Path,
        metavar="RUN|FILE",
        help="run directory, or JSON lines with raw and refined texts (`refine --original`)",
    )
    add(
        "--sample",
        type=int,
        default=20,
        metavar="N",
        help="ask about N documents of each outcome and reason (default: 20)",
    )
    add(
        "--outcome",
        default="",
        choices=["kept", "edited", "dropped", "quarantined"],
        help="only documents with this outcome",
    )
    add("--reason", default="", help="only documents dropped or quarantined for this reason")
    add("--id", help="only this document: its id, or FILE:POSITION in the input")
    add("--seed", type=int, default=0, help="seed of the choice (default: 0)")
    add(
        "--out",
        type=Path,
        metavar="FILE",
        help="file of marks (default: review.jsonl in RUN, or FILE.review.jsonl)",
    )
    add("--summary", action="store_true", help="print the estimates so far; ask nothing")
    _json(verb)


def _merge(verb: Parser) -> None:
    add = verb.add_argument
    _run(verb)
    add("--processes", type=int, default=1, metavar="N", help="number of processes (default: 1)")
    add("--max-ram", metavar="SIZE", help="memory for finding duplicates (default: 1GiB)")
    array = verb.add_argument_group("to run a phase of the merge as a job array")
    array.add_argument(
        "--phase",
        choices=["sketch", "match", "scatter", "write"],
        help="run only this phase; `merge` without --phase publishes the corpus at the end",
    )
    array.add_argument("--number", type=int, default=0, help="index of this array element, from 0")
    array.add_argument("--of", type=int, default=1, help="number of array elements")
    variant = verb.add_argument_group("to make another corpus from the same ledgers")
    variant.add_argument(
        "--out", type=Path, metavar="DIR", help="write the corpus to DIR; the run is only read"
    )
    variant.add_argument(
        "--with",
        type=Path,
        dest="manifest",
        metavar="MANIFEST",
        help="take policy, dedup, output and seed from this manifest",
    )
    variant.add_argument(
        "--policy", metavar="FILE", help="take the policy from this YAML file; or: reference"
    )
    variant.add_argument("--threshold", type=float, metavar="T", help="set dedup.near.threshold")


def _inspect(verb: Parser) -> None:
    add = verb.add_argument
    _run(verb)
    add("id", metavar="ID", nargs="?", help="id of a document, or FILE:POSITION in the input")
    add("--sample", type=int, metavar="N", help="show N documents chosen at random instead")
    add(
        "--outcome",
        choices=["kept", "edited", "dropped", "duplicate", "quarantined"],
        help="with --sample: only documents with this outcome",
    )
    add("--seed", type=int, default=0, help="with --sample: seed of the choice (default: 0)")
    _json(verb)


def _report(verb: Parser) -> None:
    _run(verb)
    _json(verb)


def _verify(verb: Parser) -> None:
    add = verb.add_argument
    _run(verb)
    add("--processes", type=int, default=1, metavar="N", help="number of processes (default: 1)")
    add(
        "--repair",
        action="store_true",
        help="delete damaged files, so that the next launch writes them again",
    )
    _json(verb)


def _evaluate(verb: Parser) -> None:
    add = verb.add_argument
    add("gold", type=Path, nargs="+", metavar="GOLD", help="JSON lines files of gold records")
    _refiner(verb, "take stages, engine and policy from this manifest", several=True)
    add(
        "--rules",
        action="append",
        default=[],
        choices=["c4", "gopher", "fineweb"],
        help="evaluate this set of rules, too; may be repeated",
    )
    _fields(verb)
    add(
        "--where",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="only records with this value; may be repeated",
    )
    add(
        "--exclude",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="no records with this value; may be repeated",
    )
    add("--split", choices=["train", "validation"], help="only records of this split of the hosts")
    add("--limit", type=int, metavar="N", help="only N records, chosen at random")
    add("--seed", type=int, default=0, help="seed of --limit and --bootstrap (default: 0)")
    add(
        "--bootstrap",
        type=int,
        default=1000,
        metavar="N",
        help="resamples for the confidence intervals (default: 1000; 0: no intervals)",
    )
    add("--json", type=Path, metavar="FILE", help="write one JSON document to FILE; - prints it")


def _annotate(verb: Parser) -> None:
    add = verb.add_argument
    add(
        "sources",
        type=Path,
        nargs="+",
        metavar="SOURCE",
        help="refined runs, whose programs become examples, or files of gold records",
    )
    add("--out", type=Path, required=True, metavar="FILE", help="examples file (.jsonl.zst)")
    add(
        "--dialect",
        choices=["prox", "refinex", "ultrax", "rescraper"],
        default="prox",
        help="dialect of the programs (default: prox)",
    )
    add(
        "--windows",
        default="64,6000",
        metavar="SIZE",
        help="size of windows: LINES, or LINES,CHARACTERS, or document (default: 64,6000)",
    )
    add(
        "--untouched",
        type=float,
        default=1.0,
        metavar="SHARE",
        help="largest share of training windows without an edit (default: 1, no limit)",
    )
    add("--per-source", type=int, metavar="N", help="at most N training documents per source")
    add(
        "--held-out",
        type=Path,
        nargs="+",
        default=[],
        metavar="FILE",
        help="leave out training documents from the hosts of these files, and near-duplicates of"
        " their documents",
    )
    _fields(verb)
    add("--seed", type=int, default=0, help="seed of random choices (default: 0)")
    _json(verb)


def _adapt(verb: Parser) -> None:
    add = verb.add_argument
    add("recipe", type=Path, nargs="?", metavar="RECIPE", help="recipe (file or name)")
    add("--out", type=Path, required=True, metavar="DIR", help="directory of the model")
    add(
        "--pairs",
        type=Path,
        nargs=2,
        metavar=("RAW", "CLEAN"),
        help="instead of a recipe: pages as they are and as they should be, in folders of .txt"
        " files with equal names or JSON lines with equal ids; ends with a verdict whether to use"
        " the model",
    )
    add(
        "--minutes",
        type=float,
        metavar="N",
        help="with --pairs: how long to train (default: 1 for each 100 pages, from 3 to 60)",
    )
    _fields(verb)
    add("--resume", action="store_true", help="resume the training in DIR; --pairs always does")
    add(
        "--processes", type=int, metavar="N", help="number of processes (default: one for each GPU)"
    )
    add("--site", help="train in a Slurm job on this site (file or name)")


def _worker(verb: Parser) -> None:
    add = verb.add_argument
    _run(verb)
    add("--number", type=int, default=0, help="index of this worker, from 0")
    add("--of", type=int, default=1, help="number of workers")


def _schema(verb: Parser) -> None:
    verb.add_argument("kind", choices=["manifest", "site", "recipe"])


def _manifest(verb: Parser) -> None:
    add = verb.add_argument
    add(
        "manifest",
        type=Path,
        metavar="MANIFEST",
        help="manifest (file or name), or the directory of a run to resume",
    )
    add("--site", help="site file or name, or auto (default: the manifest's site)")
    add("--run", type=Path, metavar="DIR", help="run directory (default: the manifest's run_dir)")


def _refiner(verb: Parser, from_manifest: str, *, several: bool = False) -> None:
    add = verb.add_argument
    action, default = ("append", list[str]()) if several else ("store", None)
    again = "; may be repeated" if several else ""
    add("--manifest", type=Path, action=action, default=default, help=f"{from_manifest}{again}")
    add(
        "--model",
        action=action,
        default=default,
        help="model of the chunk stage: a directory, a hub id, or embedded (default: no model, the"
        f" rules{'' if several else '; with --out: embedded'}){again}",
    )
    add(
        "--doc-model",
        action=action,
        default=default,
        metavar="MODEL",
        help=f"model of a doc stage that runs before the chunk stage{again}",
    )
    add("--prompt", help="profile, or its file (default: the model's own, or else prox-llama2)")
    add("--engine", choices=["rules", "transformers", "vllm"], help="engine that runs the models")


def _fields(verb: Parser) -> None:
    verb.add_argument(
        "--fields",
        default="",
        metavar="NAME=KEY,…",
        help="keys of the records that hold noisy, gold, labels, text, keep, unanimous, id, source,"
        " host, url",
    )


def _run(verb: Parser) -> None:
    verb.add_argument("run", type=Path, metavar="RUN", help="run directory")


def _json(verb: Parser) -> None:
    verb.add_argument("--json", action="store_true", help="print one JSON document")


_GROUPS: dict[str, dict[str, tuple[str, Callable[[Parser], None]]]] = {
    "Before a run": {
        "init": ("write a manifest, site or recipe to change", _init),
        "doctor": ("check whether a launch would work on a site", _doctor),
        "plan": ("show what a launch would do, and submit nothing", _plan),
        "refine": ("refine files on this machine: print the result, or make a corpus", _refine),
    },
    "A run": {
        "launch": ("start a run, or resume it: refine, merge and report", _launch),
        "status": ("show how far a run is", _status),
        "cancel": ("cancel a run's jobs; launch resumes it", _run),
        "report": (
            "write the page of a run: what was removed, why, at what cost",
            _report,
        ),
        "inspect": ("show a document before and after, with its programs", _inspect),
        "review": ("mark what a run did right or wrong, and see how often it is right", _review),
        "merge": ("write the corpus of a refined run, or another one with --out", _merge),
        "verify": ("check every checksum and count of a run", _verify),
    },
    "A refiner": {
        "evaluate": ("score a refiner on gold records", _evaluate),
        "annotate": ("make training examples from runs or gold records", _annotate),
        "adapt": ("train a model to write programs", _adapt),
    },
    FOR_JOBS: {
        "worker": ("refine shards until none is left", _worker),
        "advance": ("take a run's next step", _run),
        "schema": ("print the JSON Schema of manifests, sites or recipes", _schema),
    },
}
