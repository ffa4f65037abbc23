# SPDX-License-Identifier: MIT OR Apache-2.0
"""The host root: a folder with a stock Debian kernel that has Rust, its compilers, its build tree, and QEMU.

Also what is made from it or beside it: the debug kernel, and the stock kernels, memtest86+ and Xen that serve as guests.
"""

import gzip
import os
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

from . import kmodules, steps
from .archive import Archive, sources
from .cache import RECIPES, TOP, Failure, cache_dir, lock, made_whole, newest, recipe_hash

SUITE = "trixie"
BACKPORTS = "trixie-backports"

# Guest kernels: series → the suite that carries it. "7" is the newest of backports.
GUESTS = {"6.1": "bookworm", "6.12": "trixie", "7": BACKPORTS}
# The modules of these kernels that are kept, with all they depend on.
GUEST_MODULES = ("virtio_pci", "virtio_blk", "virtio_rng", "ext4")

# Guests that are no Linux: their package, and the file in it. The memtest86+ of this suite ends within its last paragraph.
PACKAGED_SUITE = "bookworm"
PACKAGED = {
    "memtest-64": ("memtest86+", "boot/memtest86+x64.bin"),
    "memtest-32": ("memtest86+", "boot/memtest86+ia32.bin"),
    "xen": ("xen-hypervisor-4.17-amd64", "boot/xen-4.17-amd64.gz"),
}

# Nobody reads these inside the root, and they are most of its files.
LEAN = [
    "path-exclude=/usr/share/man/*",
    "path-exclude=/usr/share/doc/*",
    "path-exclude=/usr/share/locale/*",
    "path-exclude=/usr/src/rustc-*/*",
    "path-include=/usr/src/rustc-*/library/*",
]
# Parts of the kernel source that no x86 build reads.
UNUSED_SOURCE = ["drivers/gpu/drm/amd/include/asic_reg", "arch/*/boot/dts", "Documentation/devicetree", "tools/testing"]


def root_hash() -> str:
    return recipe_hash("root.packages", "root.preferences", "kernel-tree.sh", extra=repr((LEAN, UNUSED_SOURCE)))


def debug_hash() -> str:
    return recipe_hash("debug-kernel.sh", "debug-kernel.config")


def guests_hash() -> str:
    return recipe_hash(extra=repr((GUESTS, GUEST_MODULES)))


def packaged_hash() -> str:
    return recipe_hash(extra=repr((PACKAGED_SUITE, PACKAGED)))


def find_root() -> Path | None:
    return newest(f"root-*-{root_hash()}")


def find_debug(root: Path) -> Path | None:
    return newest(f"debug-{release_of(root)}-{debug_hash()}")


def find_guests() -> Path | None:
    return newest(f"guests-*-{guests_hash()}")


def find_packaged() -> Path | None:
    return newest(f"packaged-*-{packaged_hash()}")


def release_of(root: Path) -> str:
    """The kernel's release string, `uname -r` of the emulated host."""
    return (root / "v3vee.release").read_text().strip()


def privileged() -> list[str]:
    """What to put before a command that needs root."""
    if os.geteuid() == 0:
        return []
    if not shutil.which("sudo") or subprocess.run(["sudo", "true"], check=False).returncode != 0:
        cache = shlex.quote(str(cache_dir()))
        line = f"env PATH={shlex.quote(os.environ['PATH'])} XDG_CACHE_HOME={shlex.quote(str(cache_dir().parent))} "
        line += f"{shlex.quote(str(TOP / 'scripts/bootstrap'))} && chown -R {os.geteuid()}:{os.getegid()} {cache}"
        raise Failure(f"making the host root needs root, and sudo is not to be had. Ask an administrator to run, once:\n  {line}")
    return ["sudo"]


def packages(release: str, version: str) -> list[str]:
    series = ".".join(release.split(".")[:2])
    chosen = [f"linux-{part}-{release}={version}" for part in ("binary", "modules", "headers")]
    chosen.append(f"linux-source-{series}={version}")
    lines = (RECIPES / "root.packages").read_text().splitlines()
    return chosen + [line for line in lines if line and not line.startswith("#")]


def make_root(archive: Archive) -> Path:
    """Makes the root for the newest kernel of the archive, unless it stands already."""
    release, version = archive.host_kernel()
    target = cache_dir() / f"root-{release}-{root_hash()}"
    if target.exists():
        os.utime(target)
        return target
    steps.say(f"making the host root: Debian {SUITE} with kernel {release} ({version}). It takes about 4 minutes and 4 GB, once")
    privileged()
    with made_whole_as_root(target) as root:
        install_packages(root, release, version)
        (root / "v3vee.release").write_text(release + "\n")
        unpack_source(root, release)
        script = root / "build" / "kernel-tree.sh"
        shutil.copy(RECIPES / "kernel-tree.sh", script)
        steps.run("making the kernel's build tree with Rust metadata",
                  in_root(root, "/build/kernel-tree.sh", release, "/build/source", "/build/obj"),
                  cache_dir() / "logs/kernel-tree.log", "This is a fault of the recipe: scripts/recipes/kernel-tree.sh.", "about a minute",
                  env=root_env(root))
    return target


def made_whole_as_root(target: Path):
    """As `made_whole`; what a failed run of another user left behind goes too."""
    leftover = target.with_name(f".{target.name}.making")
    if leftover.exists():
        subprocess.run([*privileged(), "rm", "-rf", "--one-file-system", str(leftover)], check=True)
    return made_whole(target)


def install_packages(root: Path, release: str, version: str) -> None:
    # Made beside the folder: mmdebstrap wants an empty one that is root's.
    command = [*privileged(), "mmdebstrap", "--mode=root", "--variant=minbase", "--format=directory"]
    command += ['--aptopt=Acquire::Check-Valid-Until "false"', '--aptopt=Acquire::Retries "3"', "--dpkgopt=force-unsafe-io"]
    command += [f"--dpkgopt={option}" for option in LEAN]
    command += [f'--setup-hook=mkdir -p "$1/etc/apt/preferences.d" && cp {RECIPES}/root.preferences "$1/etc/apt/preferences.d/v3vee"']
    command += ["--include=" + ",".join(packages(release, version)), SUITE, str(root), "-"]
    with tempfile.TemporaryFile("w+") as lines:
        lines.write(sources(SUITE, BACKPORTS))
        lines.seek(0)
        steps.run("installing packages into the root", command, cache_dir() / "logs/mmdebstrap.log",
                  "If a package was not found, the archive changed meanwhile: run it again.", "about 2 minutes", stdin=lines)
    if os.geteuid() != 0:
        owner = f"{os.geteuid()}:{os.getegid()}"
        subprocess.run([*privileged(), "chown", "-R", "--no-dereference", owner, str(root)], check=True)


def unpack_source(root: Path, release: str) -> None:
    series = ".".join(release.split(".")[:2])
    (root / "build" / "source").mkdir(parents=True)
    tarball = root / f"usr/src/linux-source-{series}.tar.xz"
    command = ["tar", "-C", root / "build/source", "--strip-components=1", "-xf", tarball]
    command += [f"--exclude=*/{part}" for part in UNUSED_SOURCE]
    steps.run("unpacking the kernel's source", command, cache_dir() / "logs/source.log", "Is the disk full?", "about half a minute")
    tarball.unlink()


def in_root(root: Path, *command: str, binds: tuple[str, ...] = ()) -> list[str]:
    """The command line that runs `command` inside `root`."""
    line = [str(RECIPES.parent / "in-root")]
    for bind in binds:
        line += ["--bind", bind]
    return line + list(command)


def root_env(root: Path) -> dict[str, str]:
    return {**os.environ, "V3VEE_ROOT": str(root)}


def make_debug(root: Path) -> Path:
    """Builds the debug kernel, unless it stands already."""
    target = cache_dir() / f"debug-{release_of(root)}-{debug_hash()}"
    if target.exists():
        return target
    with made_whole(target) as tree:
        for name in ("debug-kernel.sh", "debug-kernel.config"):
            shutil.copy(RECIPES / name, tree)
        steps.run("building the debug kernel (lock proving, leak detector, …)",
                  in_root(root, "/build/debug/debug-kernel.sh", "/build/source", "/build/debug", binds=(f"{tree}:/build/debug",)),
                  cache_dir() / "logs/debug-kernel.log", "This is a fault of the recipe: scripts/recipes/debug-kernel.sh.", "about 5 minutes",
                  env=root_env(root))
    return target


def make_guests(archive: Archive, root: Path) -> Path:
    """Unpacks the stock kernels that serve as guests: SERIES/vmlinuz, SERIES/release and SERIES/lib/modules/RELEASE."""
    chosen = {series: archive.guest_kernel(series, suite) for series, suite in GUESTS.items()}
    names = "+".join(sorted(version.replace("~", "-") for _, version in chosen.values()))
    target = cache_dir() / f"guests-{names}-{guests_hash()}"
    if target.exists():
        os.utime(target)
        return target
    with made_whole(target) as folder, tempfile.TemporaryDirectory(dir=cache_dir()) as scratch:
        for series, (parts, version) in chosen.items():
            unpacked = archive.unpack(parts, version, Path(scratch))
            image = next(path for path in unpacked.rglob("vmlinuz*") if path.is_file())
            release = parts[0].removeprefix("linux-image-").removeprefix("linux-binary-")
            (folder / series).mkdir()
            shutil.copy(image, folder / series / "vmlinuz")
            (folder / series / "release").write_text(release + "\n")
            keep_modules(root, next(unpacked.rglob(f"lib/modules/{release}")), folder / series)
    return target


def keep_modules(root: Path, modules: Path, into: Path) -> None:
    """Copies what guests need of a package's folder lib/modules/RELEASE. Which module needs which is only known once depmod has read them."""
    depmod(root, modules)
    kept = into / "lib/modules" / modules.name
    kmodules.copy(modules, GUEST_MODULES, kept)
    depmod(root, kept)


def depmod(root: Path, modules: Path) -> None:
    command = in_root(root, "depmod", "--basedir", "/build/modules", modules.name, binds=(f"{modules.parents[2]}:/build/modules",))
    steps.run(f"listing modules of the kernel {modules.name}", command, cache_dir() / "logs/depmod.log", env=root_env(root))


def make_packaged(archive: Archive, _root: Path) -> Path:
    """Unpacks the guests that are no Linux."""
    versions = {package: archive.newest(package, PACKAGED_SUITE) for package, _ in PACKAGED.values()}
    names = "+".join(version.replace("~", "-") for version in versions.values())
    target = cache_dir() / f"packaged-{names}-{packaged_hash()}"
    if target.exists():
        os.utime(target)
        return target
    with made_whole(target) as folder, tempfile.TemporaryDirectory(dir=cache_dir()) as scratch:
        unpacked = {package: archive.unpack([package], version, Path(scratch)) for package, version in versions.items()}
        for name, (package, file) in PACKAGED.items():
            data = (unpacked[package] / file).read_bytes()
            (folder / name).write_bytes(gzip.decompress(data) if file.endswith(".gz") else data)
    return target


# What is unpacked from the archive: how it is found in the cache, and how it is made.
UNPACKED = {"guests": (find_guests, make_guests), "packaged": (find_packaged, make_packaged)}


def ensure(what: str, update: bool = False) -> Path:
    """The root, the debug kernel, the guest kernels or the packaged guests: found in the cache, or made."""
    find, make = UNPACKED.get(what, (find_root, None))
    with lock("host root"):
        root, found = (None, None) if update else (find_root(), find())
        if root is None or found is None:
            archive = Archive()
            root = root or make_root(archive)
            found = make(archive, root) if make else root
    if what != "debug":
        return found
    with lock("debug kernel"):
        return make_debug(root)
