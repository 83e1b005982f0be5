"""Files in packages of Debian, PyPI and npm and on GitHub, which their own clients download."""

import hashlib
import re
import subprocess
import sys
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path


class Packages:
    """A folder of downloaded packages."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def debian(self, name: str, path: str) -> Iterator[tuple[str, bytes]]:
        """Files of a Debian package; see `_files`."""
        package = self._get(f"{name}_*.deb", ["apt-get", "download", "-qq", name])
        command = ["dpkg-deb", "--fsys-tarfile", str(package)]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            with tarfile.open(fileobj=process.stdout, mode="r|") as archive:
                found = _files(archive, path)
        if process.returncode:
            raise RuntimeError(f"dpkg-deb cannot read {package}")
        return found

    def pypi(self, name: str, path: str) -> Iterator[tuple[str, bytes]]:
        """Files of a source distribution; see `_files`."""
        pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-binary", ":all:"]
        with tarfile.open(self._get(f"{name}-*.tar.gz", [*pip, name])) as archive:
            return _files(archive, path)

    def npm(self, name: str, path: str) -> Iterator[tuple[str, bytes]]:
        """Files of an npm package; see `_files`."""
        with tarfile.open(self._get(f"{name}-*.tgz", ["npm", "pack", "--silent", name])) as archive:
            return _files(archive, path)

    def git(self, name: str, path: str) -> Iterator[tuple[str, bytes]]:
        """Files of a repository of GitHub; see `_files`. `path` begins their paths."""
        folder = name.replace("/", "+")
        clone = ["git", "clone", "-q", "--bare", "--depth", "1", f"https://github.com/{name}"]
        repository = self._get(folder, [*clone, folder])
        command = ["git", f"--git-dir={repository}", "archive", "HEAD", path]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            with tarfile.open(fileobj=process.stdout, mode="r|") as archive:
                found = _files(archive, "")
        if process.returncode:
            raise RuntimeError(f"git cannot read {repository}")
        return found

    def _get(self, pattern: str, command: list[str]) -> Path:
        if not (files := sorted(self.folder.glob(pattern))):
            print(f"downloading {pattern}", flush=True)
            subprocess.run(command, cwd=self.folder, check=True, stdout=subprocess.DEVNULL)
            files = sorted(self.folder.glob(pattern))
        return files[-1]


def _files(archive: tarfile.TarFile, path: str) -> Iterator[tuple[str, bytes]]:
    """The files whose path matches a pattern, in the order of the paths' hashes."""
    found = {}
    for member in archive:
        if member.isfile() and re.search(path, member.name):
            stream = archive.extractfile(member)
            assert stream is not None
            found[member.name] = stream.read()
    return ((name, found[name]) for name in hashed(found))


def hashed(names: Iterable[str]) -> list[str]:
    """Names in the order of their hashes: the same everywhere, and without any pattern."""
    return sorted(names, key=lambda name: hashlib.sha256(name.encode("utf-8", "replace")).digest())
