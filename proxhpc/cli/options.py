"""The command line's commands and their options."""

import argparse
import sys
from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from proxhpc import __version__
from proxhpc.errors import UserError
from proxhpc.run.merge_phases import MERGE_PHASES

ABOUT = (
    "Refine pre-training corpora on Slurm clusters with small language models that write programs."
)
FOR_JOBS = "For jobs and scripts"
"""The group of commands that people do not type; docs/cli.md has them."""
_Group = argparse._ActionsContainer  # a parser, or a group of its options
_SITE = "site file or name, or auto (default: the manifest's site)"
_OUTCOMES = ["kept", "edited", "dropped", "quarantined"]


class Parser(argparse.ArgumentParser):
    """A parser whose errors are of the command that was given, and name what was probably meant."""

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Show the help if nothing is given."""
        args = sys.argv[1:] if args is None else args
        return super().parse_args(args or ["--help"], namespace)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Refuse what is not known here, not at the end, where argparse shows another usage."""
        found, unknown = super().parse_known_args(args, namespace)
        for word in unknown:
            if word == "-" or not word.startswith("-"):
                self.error(f"one argument too many: {word}")
            names = {name.strip("-"): name for name in self._option_string_actions}
            meant = get_close_matches(word.strip("-").partition("=")[0], names, 1)
            hint = f"did you mean {names[meant[0]]}?" if meant else f"see `{self.prog} --help`"
            self.error(f"there is no option {word}; {hint}")
        return found, unknown

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            names = [str(name) for name in action.choices]
            if listed := getattr(action, "_choices_actions", ()):
                names = [choice.dest for choice in listed]  # without commands for scripts
            meant = get_close_matches(str(value), names, 1)
            told = f"did you mean {meant[0]}?" if meant else f"choose from {', '.join(names)}"
            raise argparse.ArgumentError(action, f"there is no {value}; {told}")


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
    def __call__(self, top: argparse.ArgumentParser, *arguments: object) -> None:
        import shtab

        _, shell, *_ = arguments
        for verb in _verbs(top).choices.values():
            for action in verb._actions:
                if action.type is Path:
                    action.complete = shtab.FILE  # type: ignore[attr-defined]
        _verbs(top).help = None  # shtab skips what is suppressed
        sys.stdout.write(shtab.complete(top, str(shell)))
        top.exit()


def _verbs(top: argparse.ArgumentParser) -> "argparse._SubParsersAction[Parser]":
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
    verb.add_argument("site", metavar="SITE", nargs="?", help=_SITE)
    _path(verb, "--manifest", None, "check what a run of this manifest needs (file or name)")
    _path(verb, "--run", "DIR", "check this run directory")
    about = "also run two short jobs, on two nodes, with a worker's resources"
    verb.add_argument("--probe", action="store_true", help=about)
    _json(verb)


def _init(verb: Parser) -> None:
    names = ("manifest", "recipe", "sbatch", "site")
    about = "what to write:"
    kinds = verb.add_subparsers(dest="kind", required=True, metavar="|".join(names), help=about)
    for kind in names:
        noun = "script of a job array" if kind == "sbatch" else kind
        about = f"a copy of a {noun} that comes with proxhpc"
        if kind == "site":
            about = "a site for this cluster, from what Slurm says and accepts"
        writer = kinds.add_parser(kind, help=about, description=f"Write {about}.")
        if kind != "site":
            writer.add_argument("name", metavar="NAME", help="its name; a wrong one lists them")
        default = {"site": "site.yaml", "sbatch": "NAME.sbatch"}.get(kind, "NAME.yaml")
        about = f"file, which must not exist (default: {default})"
        _path(writer, "file", "FILE", about, nargs="?")
        _debug(writer)


def _plan(verb: Parser) -> None:
    _manifest(verb)
    _flag(verb, "--stage", "first copy the files behind URLs in corpus.paths to disk")
    _flag(verb, "--freeze", "also write the run directory, which slurm/*.sbatch need")
    about = "refine N random documents on this machine, or in a job of a Slurm site, and estimate"
    _number(verb, "--calibrate", f"{about} from them")
    _json(verb)


def _refine(verb: Parser) -> None:
    about = "corpus files; any other file is one document; - (the default) reads JSON lines from"
    _path(verb, "files", "FILE", f"{about} standard input; with --out folders, too", nargs="*")
    about = "refine all files in a run in DIR, with corpus and report; run it again to resume"
    _path(verb, "--out", "DIR", about)
    _refiner(verb, "take stages, engine, policy and fields from this manifest")
    _flag(verb, "--plain", "read standard input as one plain text")
    _number(verb, "--limit", "refine only the first N documents")
    about = "with --out: field with the text of JSON lines and parquet (default: guessed)"
    verb.add_argument("--field", metavar="NAME", help=about)
    form = verb.add_mutually_exclusive_group()
    _flag(form, "--text", "print only the refined texts")
    _flag(form, "--diff", "show each document before and after")
    _flag(form, "--original", "print each raw text, too, as `original_text`, for `proxhpc review`")


def _launch(verb: Parser) -> None:
    _manifest(verb)
    about = "show the batch scripts and Slurm's answer to them; submit and write nothing"
    _flag(verb, "--dry-run", about)


def _status(verb: Parser) -> None:
    _run(verb)
    _flag(verb, "--watch", "update the page until the run ends")
    _json(verb)


def _review(verb: Parser) -> None:
    about = "run directory, or JSON lines with raw and refined texts (`refine --original`)"
    _path(verb, "source", "RUN|FILE", about)
    about = "ask about N documents of each outcome and reason (default: 20)"
    _number(verb, "--sample", about, default=20)
    _choice(verb, "--outcome", _OUTCOMES, "only documents with this outcome", default="")
    about = "only documents dropped or quarantined for this reason"
    verb.add_argument("--reason", default="", help=about)
    about = "only this document: its id, or FILE:POSITION in the input"
    verb.add_argument("--id", help=about)
    _seed(verb, "seed of the choice")
    about = "file of marks (default: review.jsonl in RUN, or FILE.review.jsonl)"
    _path(verb, "--out", "FILE", about)
    _flag(verb, "--summary", "print the estimates so far; ask nothing")
    _json(verb)


def _merge(verb: Parser) -> None:
    _run(verb)
    _number(verb, "--processes", "number of processes (default: 1)", default=1)
    about = "memory for sorting and for the hashes of benchmarks"
    about += " (default: 1GiB, plus what the benchmarks need)"
    verb.add_argument("--max-ram", metavar="SIZE", help=about)
    array = verb.add_argument_group("to run a phase of the merge as a job array")
    about = "run only this phase; `merge` without --phase publishes the corpus at the end"
    _choice(array, "--phase", [*MERGE_PHASES], about)
    _element(array, "index of this array element, from 0", "number of array elements")
    variant = verb.add_argument_group("to make another corpus from the same ledgers")
    _path(variant, "--out", "DIR", "write the corpus to DIR; the run is only read")
    about = "take policy, dedup, output and seed from this manifest"
    _path(variant, "--with", "MANIFEST", about, dest="manifest")
    about = "take the policy from this YAML file; or: reference, none"
    variant.add_argument("--policy", metavar="FILE", help=about)
    variant.add_argument("--threshold", type=float, metavar="T", help="set dedup.near.threshold")


def _inspect(verb: Parser) -> None:
    _run(verb)
    about = "id of a document, or FILE:POSITION in the input"
    verb.add_argument("id", metavar="ID", nargs="?", help=about)
    _number(verb, "--sample", "show N documents chosen at random instead")
    about = "with --sample: only documents with this outcome"
    _choice(verb, "--outcome", [*_OUTCOMES[:3], "duplicate", "left_out", _OUTCOMES[3]], about)
    _seed(verb, "with --sample: seed of the choice")
    _json(verb)


def _report(verb: Parser) -> None:
    _run(verb)
    _json(verb)


def _verify(verb: Parser) -> None:
    _run(verb)
    _number(verb, "--processes", "number of processes (default: 1)", default=1)
    _flag(verb, "--repair", "delete damaged files, so that the next launch writes them again")
    _json(verb)


def _evaluate(verb: Parser) -> None:
    _path(verb, "gold", "GOLD", "JSON lines files of gold records", nargs="+")
    _refiner(verb, "take stages, engine and policy from this manifest", several=True)
    about = "evaluate this set of rules, too; may be repeated"
    _choice(verb, "--rules", ["c4", "gopher", "fineweb"], about, action="append", default=[])
    _fields(verb)
    for name, about in (("--where", "only records"), ("--exclude", "no records")):
        about += " with this value; may be repeated"
        verb.add_argument(name, action="append", default=[], metavar="KEY=VALUE", help=about)
    about = "only records of this split of the hosts"
    _choice(verb, "--split", ["train", "validation"], about)
    _number(verb, "--limit", "only N records, chosen at random")
    _seed(verb, "seed of --limit and --bootstrap", minimum=0)
    about = "resamples for the confidence intervals (default: 1000; 0: no intervals)"
    _number(verb, "--bootstrap", about, minimum=0, default=1000)
    _path(verb, "--json", "FILE", "write one JSON document to FILE; - prints it")


def _annotate(verb: Parser) -> None:
    about = "refined runs, whose programs become examples, or files of gold records"
    _path(verb, "sources", "SOURCE", about, nargs="+")
    _path(verb, "--out", "FILE", "examples file (.jsonl.zst)", required=True)
    dialects = ["prox", "refinex", "ultrax", "rescraper"]
    about = "dialect of the programs (default: prox)"
    _choice(verb, "--dialect", dialects, about, default="prox")
    about = "size of windows: LINES, or LINES,CHARACTERS, or document (default: 64,6000)"
    verb.add_argument("--windows", default="64,6000", metavar="SIZE", help=about)
    about = "largest share of training windows without an edit (default: 1, no limit)"
    verb.add_argument("--untouched", type=float, default=1.0, metavar="SHARE", help=about)
    _number(verb, "--per-source", "at most N training documents per source")
    about = "leave out training documents from the hosts of these files, and near-duplicates of"
    _path(verb, "--held-out", "FILE", f"{about} their documents", nargs="+", default=[])
    _fields(verb)
    _seed(verb, "seed of random choices")
    _json(verb)


def _prove(verb: Parser) -> None:
    _manifest(verb)
    verb.add_argument(
        "--out", type=Path, metavar="DIR", help="directory of the trainings (default: RUN-prove)"
    )
    _json(verb)


def _adapt(verb: Parser) -> None:
    _path(verb, "recipe", "RECIPE", "recipe (file or name)", nargs="?")
    _path(verb, "--out", "DIR", "directory of the model", required=True)
    verb.add_argument(
        "--pairs",
        type=Path,
        nargs=2,
        metavar=("RAW", "CLEAN"),
        help="instead of a recipe: pages as they are and as they should be, in folders of .txt"
        " files with equal names or JSON lines with equal ids; ends with a verdict whether to use"
        " the model",
    )
    about = "with --pairs: how long to train (default: 1 for each 100 pages, from 3 to 60)"
    verb.add_argument("--minutes", type=float, metavar="N", help=about)
    _fields(verb)
    _flag(verb, "--resume", "resume the training in DIR; --pairs always does")
    _number(verb, "--processes", "number of processes (default: one for each GPU)")
    verb.add_argument("--site", help="train in a Slurm job on this site (file or name)")


def _worker(verb: Parser) -> None:
    _run(verb)
    _element(verb, "index of this worker, from 0", "number of workers")


def _schema(verb: Parser) -> None:
    verb.add_argument("kind", choices=["manifest", "site", "recipe"])


def _manifest(verb: Parser) -> None:
    about = "manifest (file or name), or the directory of a run to resume"
    _path(verb, "manifest", "MANIFEST", about)
    verb.add_argument("--site", help=_SITE)
    _path(verb, "--run", "DIR", "run directory (default: the manifest's run_dir)")


def _refiner(verb: Parser, from_manifest: str, *, several: bool = False) -> None:
    how: dict[str, Any] = {"action": "append", "default": []} if several else {}
    again = "; may be repeated" if several else ""
    _path(verb, "--manifest", None, f"{from_manifest}{again}", **how)
    about = "model of the chunk stage: a directory, a hub id, or embedded (default: no model, the"
    default = f" rules{'' if several else '; with --out: embedded'}){again}"
    verb.add_argument("--model", help=about + default, **how)
    about = f"model of a doc stage that runs before the chunk stage{again}"
    verb.add_argument("--doc-model", metavar="MODEL", help=about, **how)
    about = "profile, or its file (default: the model's own, or else prox-llama2)"
    verb.add_argument("--prompt", help=about)
    _choice(verb, "--engine", ["rules", "transformers", "vllm"], "engine that runs the models")


def _fields(verb: Parser) -> None:
    about = "keys of the records that hold noisy, gold, labels, text, keep, unanimous, id, source,"
    verb.add_argument("--fields", default="", metavar="NAME=KEY,…", help=f"{about} host, url")


def _element(group: _Group, number: str, of: str) -> None:
    """Which element of a job array this is."""
    _number(group, "--number", number, minimum=0, default=0, metavar=None)
    _number(group, "--of", of, default=1, metavar=None)


def _run(verb: Parser) -> None:
    _path(verb, "run", "RUN", "run directory")


def _json(verb: Parser) -> None:
    _flag(verb, "--json", "print one JSON document")


def _seed(verb: Parser, about: str, minimum: int | None = None) -> None:
    _number(verb, "--seed", f"{about} (default: 0)", minimum=minimum, default=0, metavar=None)


def _flag(group: _Group, name: str, about: str) -> None:
    group.add_argument(name, action="store_true", help=about)


def _path(group: _Group, name: str, metavar: str | None, about: str, **more: Any) -> None:
    group.add_argument(name, type=Path, metavar=metavar, help=about, **more)


def _choice(group: _Group, name: str, choices: list[str], about: str, **more: Any) -> None:
    group.add_argument(name, choices=choices, help=about, **more)


def _number(
    group: _Group,
    name: str,
    about: str,
    *,
    minimum: int | None = 1,
    default: int | None = None,
    metavar: str | None = "N",
) -> None:
    """An option with a whole number. UserError if it is less than `minimum`."""

    def read(text: str) -> int:
        number = int(text)
        if minimum is not None and number < minimum:
            raise UserError(f"{name} {number}: it must be {minimum} or more")
        return number

    read.__name__ = "int"  # argparse names it in a message
    group.add_argument(name, type=read, default=default, metavar=metavar, help=about)


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
        "cancel": ("cancel the jobs of a run or of prove; launch or prove resumes it", _run),
        "report": ("write the page of a run: what was removed, why, at what cost", _report),
        "inspect": ("show a document before and after, with its programs", _inspect),
        "review": ("mark what a run did right or wrong, and see how often it is right", _review),
        "merge": ("write the corpus of a refined run, or another one with --out", _merge),
        "verify": ("check every checksum and count of a run", _verify),
    },
    "A refiner": {
        "evaluate": ("score a refiner on gold records", _evaluate),
        "annotate": ("make training examples from runs or gold records", _annotate),
        "adapt": ("train a model to write programs", _adapt),
        "prove": ("train models on raw and refined text, and say which is better", _prove),
    },
    FOR_JOBS: {
        "worker": ("refine shards until none is left", _worker),
        "advance": ("take a run's next step", _run),
        "schema": ("print the JSON Schema of manifests, sites or recipes", _schema),
    },
}
