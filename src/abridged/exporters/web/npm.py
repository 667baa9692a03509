"""Packages of npm, each fetched once by `npm pack`, checked against the digest that stands here, and kept."""

from __future__ import annotations

import base64
import hashlib
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from abridged.core.atomic import written_file
from abridged.core.cache import cache_folder
from abridged.core.errors import AbridgedError

_PATIENCE = 300  #: seconds for one package


@dataclass(frozen=True)
class Package:
    """A package at one version; `integrity` is its archive's, as package-lock.json writes it."""

    name: str
    version: str
    integrity: str

    @property
    def archive(self) -> str:
        """The name that `npm pack` gives its archive."""
        return f"{self.name.removeprefix('@').replace('/', '-')}-{self.version}.tgz"

    def files(self, names: Iterable[str]) -> dict[str, bytes]:
        """The package's files of these names, fetched where they are not in the cache.

        Raises AbridgedError: there is no npm, it cannot fetch the package, or what it fetched is another.
        """
        kept = cache_folder("npm") / self.archive
        if not (kept.is_file() and self._is(kept.read_bytes())):
            fetched = self._fetch()
            with written_file(kept) as temporary:
                temporary.write_bytes(fetched)
        with tarfile.open(kept) as archive:
            return {name: archive.extractfile(f"package/{name}").read() for name in names}  # type: ignore[union-attr]

    def _fetch(self) -> bytes:
        npm, wanted = shutil.which("npm"), f"{self.name}@{self.version}"
        hint = f"or put its archive at {cache_folder('npm') / self.archive}"
        if npm is None:
            raise AbridgedError(f"the page needs {wanted}, and there is no npm to fetch it: install Node.js, {hint}")
        with tempfile.TemporaryDirectory() as folder:
            command = [npm, "pack", "--silent", "--ignore-scripts", wanted]
            try:
                ended = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=_PATIENCE)
            except (OSError, subprocess.TimeoutExpired) as error:
                raise AbridgedError(f"npm cannot fetch {wanted} ({error}): try again, {hint}") from None
            archive = Path(folder) / self.archive
            if ended.returncode != 0 or not archive.is_file():
                reason = (ended.stderr.strip().splitlines() or ["without a reason"])[-1]
                raise AbridgedError(f"npm cannot fetch {wanted} ({reason}): connect to a network, {hint}")
            fetched = archive.read_bytes()
        if not self._is(fetched):
            raise AbridgedError(f"npm fetched another {wanted} than the one that was checked: its digest differs")
        return fetched

    def _is(self, archive: bytes) -> bool:
        method, _, wanted = self.integrity.partition("-")
        return base64.b64encode(hashlib.new(method, archive).digest()).decode() == wanted
