"""Copies the files behind the URLs of a manifest into the staging folder."""

from proxhpc.cluster.queue import Queue
from proxhpc.corpus.disk import writing
from proxhpc.corpus.inputs import InputInfo
from proxhpc.run.lease import hold_lease
from proxhpc.run.paths import RunDir
from proxhpc.run.plan import Plan
from proxhpc.run.remote import RemoteFile
from proxhpc.run.staging import Report, Staging
from proxhpc.spec.manifest import Manifest


def stage_run(manifest: Manifest, run: RunDir, report: Report) -> None:
    """Copy the files behind the URLs of a new run, or those of a started one that were removed.

    A started run has them where its plan says, not a manifest that was changed since. Errors as
    `Staging.stage`; RetryError if another process copies into the same folder.
    """
    plan = Plan.load(run) if run.plan.exists() else None
    manifest = plan.manifest if plan else manifest
    corpora = [manifest.corpus, *manifest.dedup.against]
    planned: list[tuple[InputInfo, ...]] = [()] * len(corpora)
    if plan:
        planned = [plan.inputs, *(plan.against[f.start : f.stop] for _, f in plan.against_files)]
    for corpus, inputs in zip(corpora, planned, strict=True):
        staging = Staging(corpus, run)
        if not staging.urls:
            continue
        listings = {} if plan else {url: staging.listing(url) for url in staging.urls}
        files = [file for listing in listings.values() for file in listing.files]
        files += [
            RemoteFile(info.source, staging.dir.name_of(info.path), info.size, info.version)
            for info in inputs
            if info.source
        ]
        with writing(staging.dir.leases):
            staging.dir.leases.mkdir(parents=True, exist_ok=True)
        with hold_lease(staging.dir, "stage", Queue().is_queued):
            staging.stage([*dict.fromkeys(files)], report)
            for url, listing in listings.items():
                staging.record(url, listing)
