# SPDX-License-Identifier: MIT OR Apache-2.0
"""Debian's archive, as this machine's own apt is configured for it, read through an apt state of our own.

Versions leave the pool within weeks, so nothing is pinned: every name is resolved from the index when a thing is made.
"""

import os
import re
import subprocess
from functools import cmp_to_key
from pathlib import Path

from .cache import Failure, cache_dir
from . import steps

KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
SUITES = ("bookworm", "trixie", "trixie-backports")


def mirror() -> str:
    """The archive's address: `$V3VEE_MIRROR`, or what apt has for Debian."""
    if os.environ.get("V3VEE_MIRROR"):
        return os.environ["V3VEE_MIRROR"].rstrip("/")
    query = ["apt-get", "indextargets", "--format", "$(REPO_URI)", "Origin: Debian", "Label: Debian", "Created-By: Packages"]
    uris = subprocess.run(query, capture_output=True, text=True, check=False).stdout.split()
    if not uris:
        raise Failure("apt knows no Debian archive here. Run `apt-get update`, or set V3VEE_MIRROR to the archive's address.")
    return uris[0].rstrip("/")


def sources(*suites: str) -> str:
    return "".join(f"deb [signed-by={KEYRING}] {mirror()} {suite} main\n" for suite in suites)


def later(a: str, b: str) -> int:
    """Debian's own order of versions."""
    newer = subprocess.run(["dpkg", "--compare-versions", a, "gt", b], check=False).returncode == 0
    return 1 if newer else -1 if a != b else 0


def parts_of(package: str) -> list[str]:
    """The packages of a kernel whose image is in this one: what `linux-binary-` lacks is in two others."""
    if not package.startswith("linux-binary-"):
        return [package]
    return [package, *(package.replace("-binary-", f"-{part}-") for part in ("modules", "base"))]


class Archive:
    """An index of all the suites we take packages from."""

    def __init__(self) -> None:
        self.dir = cache_dir() / "apt"
        for sub in ("lists/partial", "archives/partial", "etc"):
            (self.dir / sub).mkdir(parents=True, exist_ok=True)
        (self.dir / "etc" / "sources.list").write_text(sources(*SUITES))
        (self.dir / "status").touch()
        self.options = [
            f"-oDir::State={self.dir}",
            f"-oDir::State::lists={self.dir}/lists",
            f"-oDir::State::status={self.dir}/status",
            f"-oDir::Cache={self.dir}",
            f"-oDir::Cache::archives={self.dir}/archives",
            f"-oDir::Etc::sourcelist={self.dir}/etc/sources.list",
            "-oDir::Etc::sourceparts=-",
            "-oDir::Etc::preferencesparts=-",
            "-oAPT::Architecture=amd64",
            "-oAPT::Sandbox::User=",
            "-oAcquire::Check-Valid-Until=false",
            "-oAcquire::Retries=3",
            "-oAcquire::Languages=none",
        ]
        hint = "Is the archive reachable from here, and does it carry " + ", ".join(SUITES) + "? V3VEE_MIRROR names another."
        steps.run("reading Debian's package index", ["apt-get", *self.options, "update"], cache_dir() / "logs/index.log", hint)
        self.packages = {suite: self._read(suite) for suite in SUITES}

    def _read(self, suite: str) -> dict[str, dict[str, str]]:
        """{package: {version: file name}} of one suite."""
        query = ["apt-get", *self.options, "indextargets", "--format", "$(FILENAME)", f"Codename: {suite}", "Created-By: Packages"]
        files = subprocess.run(query, capture_output=True, text=True, check=True).stdout.split()
        if not files:
            raise Failure(f"the archive {mirror()} has no {suite}")
        text = subprocess.run(["/usr/lib/apt/apt-helper", "cat-file", files[0]], capture_output=True, text=True, check=True).stdout
        index: dict[str, dict[str, str]] = {}
        name = version = ""
        for line in text.splitlines():
            if line.startswith("Package: "):
                name = line[9:]
            elif line.startswith("Version: "):
                version = line[9:]
            elif line.startswith("Filename: "):
                index.setdefault(name, {})[version] = line[10:]
        return index

    def host_kernel(self) -> tuple[str, str]:
        """(release, version) of the newest stock kernel whose image, modules, headers and source stand at one version.

        The archive often lists headers and source some days before the signed image."""
        index = self.packages["trixie-backports"]
        best = None
        for package in index:
            match = re.fullmatch(r"linux-headers-((\d+\.\d+)[^-]*-amd64)", package)
            if not match:
                continue
            release, series = match.groups()
            parts = (package, f"linux-binary-{release}", f"linux-modules-{release}", f"linux-source-{series}")
            for version in set.intersection(*(set(index.get(part, {})) for part in parts)):
                if best is None or later(version, best[1]) > 0:
                    best = (release, version)
        if best is None:
            raise Failure("no kernel of trixie-backports has image, modules, headers and source at one version today")
        return best

    def guest_kernel(self, series: str, suite: str) -> tuple[list[str], str]:
        """(packages, version) of the newest `-cloud-` kernel of a series: the package with the image, and those with its modules."""
        pattern = re.compile(rf"linux-(image|binary)-{re.escape(series)}[\d.]*[^-]*(-\d+)?-cloud-amd64")
        index = self.packages[suite]
        found = [(package, version) for package, versions in index.items() if pattern.fullmatch(package)
                 for version in versions if all(version in index.get(part, {}) for part in parts_of(package))]
        # Where the image is only a name for others, the kernel lies in `linux-binary-`.
        binaries = [entry for entry in found if entry[0].startswith("linux-binary-")]
        if not found:
            raise Failure(f"the archive has no cloud kernel {series} in {suite}")
        package, version = max(binaries or found, key=cmp_to_key(lambda a, b: later(a[1], b[1])))
        return parts_of(package), version

    def newest(self, package: str, suite: str) -> str:
        """The newest version of a package in a suite."""
        versions = self.packages[suite].get(package)
        if not versions:
            raise Failure(f"the archive has no {package} in {suite}")
        return max(versions, key=cmp_to_key(later))

    def download(self, package: str, version: str, into: Path) -> Path:
        """Fetches one package file, checked by apt against the signed index."""
        log = cache_dir() / "logs" / f"{package}.log"
        steps.run(f"fetching {package}", ["apt-get", *self.options, "download", f"{package}={version}"], log,
                  "Run it again: the archive may have been updated meanwhile.", cwd=into)
        return next(into.glob(f"{package}_*.deb"))

    def unpack(self, packages: list[str], version: str, into: Path) -> Path:
        """Fetches packages of one version, and gives a folder with their files."""
        files = into / packages[0]
        for package in packages:
            subprocess.run(["dpkg-deb", "-x", self.download(package, version, into), files], check=True)
        return files
