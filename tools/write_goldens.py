"""Write the batch scripts that each shipped site makes: tests/golden/SITE.PHASE.sbatch.

python tools/write_goldens.py            write the files
python tools/write_goldens.py --check    exit 1 if one is not current, with the difference

Slurm need not be here: submitit only wants an `srun` on PATH, and gets one that does nothing.
"""

import difflib
import os
import sys
import tempfile
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from proxhpc.cluster import script, tasks  # noqa: E402
from proxhpc.cluster.backend import Work  # noqa: E402
from proxhpc.launch.launch import prepare_run  # noqa: E402
from proxhpc.launch.step import advance_job  # noqa: E402

GOLDEN = ROOT / "tests" / "golden"
SITES = sorted(path for path in (ROOT / "slurm" / "sites").glob("*.yaml") if path.stem != "local")


def contents() -> dict[Path, str]:
    """Return every golden file with what it should hold."""
    files: dict[Path, str] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "bin").mkdir()
        (folder / "bin" / "srun").write_text("#!/bin/sh\n")
        (folder / "bin" / "srun").chmod(0o755)
        os.environ["PATH"] = f"{folder / 'bin'}:{os.environ['PATH']}"
        (folder / "in").mkdir()
        (folder / "in" / "a.jsonl").write_text('{"text": "A line of text."}\n')
        manifest = {
            "name": "golden",
            "corpus": {"paths": "in/a.jsonl"},
            "stages": [{"level": "chunk"}],
            "engine": {"name": "rules"},
        }
        (folder / "manifest.yaml").write_text(yaml.safe_dump(manifest))
        for site in SITES:
            run = prepare_run(folder / "manifest.yaml", str(site), folder / "run", freeze=False)
            workers = [("RUN", n, 1, 8) for n in range(run.site.resources("refine").jobs)]
            merge = run.site.resources("merge")
            share = Work("merge", tasks.merge_task, [("RUN", merge.cpus)], {})
            if merge.workers > 1:
                own = [("RUN", "sketch", n, merge.workers, merge.cpus) for n in range(merge.jobs)]
                share = Work("merge", tasks.merge_share, own, {})
            works = [
                Work("refine", tasks.refine_element, workers, {}, ("n7",)),
                share,
                Work("control", advance_job, [("RUN",)], {}),
            ]
            for work in works:
                after = "afterany:123" if work.phase == "control" else ""
                made = script.executor(
                    run.dir, run.plan, run.site, work, intent=3, dependency=after
                )
                text = script.script_text(made, len(work.arguments))
                for found, shown in (
                    (sys.executable, "PYTHON"),
                    (str(run.dir.root), "RUN"),
                    (str(folder), "FOLDER"),
                    (str(ROOT), "ROOT"),
                    (run.plan.run_id, "RUNID"),
                ):
                    text = text.replace(found, shown)
                files[GOLDEN / f"{site.stem}.{work.phase}.sbatch"] = text
    return files


def main() -> int:
    """Write the files, or compare them."""
    check = sys.argv[1:] == ["--check"]
    files = contents()
    stale = set(GOLDEN.glob("*.sbatch")) - files.keys()
    different = 0
    for path, text in files.items():
        before = path.read_text() if path.exists() else ""
        if before == text:
            continue
        different += 1
        if check:
            lines = (before.splitlines(), text.splitlines())
            print("\n".join(difflib.unified_diff(*lines, path.name, "now", lineterm="")))
        else:
            path.write_text(text)
            print(path.relative_to(ROOT))
    for path in stale:
        print(f"{path.name}: no site makes it")
        if not check:
            path.unlink()
    return int(check and bool(different or stale))


if __name__ == "__main__":
    sys.exit(main())
