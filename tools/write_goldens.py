"""Write the batch scripts of the shipped sites and the prompts of the shipped profiles.

They go to tests/golden: SITE.PHASE.sbatch, and prompts.json with digests of token ids.

python tools/write_goldens.py            write the files
python tools/write_goldens.py --check    exit 1, with the difference, if a script is not current

Slurm need not be installed: submitit only needs an `srun` on PATH and gets one that does nothing.
The prompts need transformers, and those of Llama's tokenizer PROXHPC_DATA; without, they stay.
tests/test_prompts.py checks them.
"""

import difflib
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import yaml

from proxhpc.cluster import script, tasks
from proxhpc.cluster.backend import TaskBatch
from proxhpc.launch.launch import Run, prepare_run
from proxhpc.launch.step import control_batch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))
import prompt_goldens  # noqa: E402

GOLDEN = ROOT / "tests" / "golden"
SITES = sorted(path for path in (ROOT / "slurm" / "sites").glob("*.yaml") if path.stem != "local")
MANIFEST = {
    "name": "golden",
    "corpus": {"paths": "in/a.jsonl"},
    "stages": [{"level": "chunk"}],
    "engine": {"name": "rules"},
}


def scripts() -> dict[Path, str]:
    """The batch scripts, with what they should hold."""
    files = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "in").mkdir()
        (folder / "in" / "a.jsonl").write_text('{"text": "A line of text."}\n')
        (folder / "manifest.yaml").write_text(yaml.safe_dump(MANIFEST))
        srun = folder / "srun"
        srun.write_text("#!/bin/sh\n")
        srun.chmod(0o755)
        os.environ["PATH"] = f"{folder}:{os.environ['PATH']}"
        # Paths in shipped sites start at the current folder.
        os.chdir(folder)
        for site in SITES:
            run = prepare_run(folder / "manifest.yaml", str(site), folder / "run", freeze=False)
            for batch in batches(run):
                after = "afterany:123" if batch.phase == "control" else ""
                executor = script.batch_executor(
                    run.dir, run.plan, run.site, batch, intent=3, dependency=after
                )
                text = script.script_text(executor, len(batch.arguments))
                for value, placeholder in (
                    (sys.executable, "PYTHON"),
                    (str(run.dir.root), "RUN"),
                    (str(folder), "FOLDER"),
                    (str(ROOT), "ROOT"),
                    (run.plan.run_id, "RUNID"),
                ):
                    text = text.replace(value, placeholder)
                files[GOLDEN / f"{site.stem}.{batch.phase}.sbatch"] = text
    return files


def prompts() -> str:
    """The prompts of each profile, by tokenizer."""
    path = prompt_goldens.GOLDEN
    goldens = json.loads(path.read_text()) if path.exists() else {}
    if find_spec("transformers"):
        data = os.environ.get("PROXHPC_DATA")
        with tempfile.TemporaryDirectory() as folder:
            goldens |= prompt_goldens.golden_prompts(
                Path(folder), Path(data) / "llama_tokenizer" if data else None
            )
    return json.dumps(goldens, indent=1) + "\n"


def batches(run: Run) -> Iterator[TaskBatch]:
    """A batch of each phase of a run."""
    workers = [("RUN", n, 1, 8) for n in range(run.site.resources("refine").jobs)]
    yield TaskBatch("refine", tasks.refine_element_task, workers, {}, ("n7",))
    merge = run.site.resources("merge")
    if merge.workers > 1:
        units = [("RUN", "sketch", n, merge.workers, merge.cpus) for n in range(merge.jobs)]
        yield TaskBatch("merge", tasks.merge_phase_task, units, {})
    else:
        yield TaskBatch("merge", tasks.merge_task, [("RUN", merge.cpus)], {})
    yield control_batch(run.dir)


def main() -> int:
    """Write the files, or compare them."""
    check = sys.argv[1:] == ["--check"]
    files = ({} if check else {prompt_goldens.GOLDEN: prompts()}) | scripts()
    stale = set(GOLDEN.glob("*.sbatch")) - files.keys()
    current = {path: path.read_text() if path.exists() else "" for path in files}
    changed = [path for path in files if current[path] != files[path]]
    for path in changed:
        if check:
            lines = current[path].splitlines(), files[path].splitlines()
            print("\n".join(difflib.unified_diff(*lines, path.name, "now", lineterm="")))
        else:
            path.write_text(files[path])
            print(path.relative_to(ROOT))
    for path in stale:
        print(f"{path.name}: no site has this script")
        if not check:
            path.unlink()
    return int(check and bool(changed or stale))


if __name__ == "__main__":
    sys.exit(main())
