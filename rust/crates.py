#!/usr/bin/env python3
# SPDX-License-Identifier: MIT OR Apache-2.0
"""crates.py OUT.mk VENDOR CRATE…: writes, for Kbuild, one rule a crate that our CRATEs need in the module.

Cargo decides what is needed, which features are on and in which order; the kernel's build compiles it.
"""

import json
import subprocess
import sys
from pathlib import Path

TOP = Path(__file__).resolve().parents[1]
TARGET = "x86_64-unknown-none"

# Build scripts do not run: the cfgs that they would have found out for the kernel's compiler.
CFGS = {
    "memoffset": ["tuple_ty", "allow_clippy", "maybe_uninit", "raw_ref_macros", "stable_const", "stable_offset_of"],
}
# Crates that do not build against the kernel's `core`, and what stands in for the part that is used.
STAND_INS = {"num-traits": ("rust/num_traits/lib.rs", "2021")}


def cargo(*args: str) -> str:
    return subprocess.run(["cargo", *args], cwd=TOP, check=True, stdout=subprocess.PIPE, text=True).stdout


def metadata(vendor: str) -> dict:
    replace = ["--config", 'source.crates-io.replace-with="vendored"', "--config", f'source.vendored.directory="{vendor}"']
    text = cargo(*replace, "metadata", "--locked", "--offline", "--format-version=1", f"--filter-platform={TARGET}")
    return json.loads(text)


def features(roots: list[str]) -> dict[tuple[str, str], list[str]]:
    """{(name, version): features} of the crates that `roots` need, as Cargo resolves them for a build of these alone."""
    found = {}
    for root in roots:
        tree = cargo("tree", "--locked", f"--package={root}", "--edges=normal", f"--target={TARGET}", "--prefix=none",
                     "--format={p}|{f}")
        for line in tree.splitlines():
            package, _, enabled = line.removesuffix(" (*)").partition("|")
            if "(proc-macro)" in package:
                raise SystemExit(f"crates.py: {package}: the module's build has no procedural macros")
            name, version = package.split()[:2]
            found[name, version.removeprefix("v")] = [feature for feature in enabled.split(",") if feature]
    return found


def library(package: dict) -> dict:
    return next(target for target in package["targets"] if "lib" in target["kind"])


def crate_name(package: dict) -> str:
    return library(package)["name"].replace("-", "_")


def flags(package: dict, enabled: list[str], uses: list[tuple[str, str]], own: bool) -> list[str]:
    edition = STAND_INS.get(package["name"], (None, package["edition"]))[1]
    line = [f"--edition={edition}", f"-Cmetadata={package['name']}-{package['version']}"]
    line += [f"""--cfg 'feature="{feature}"'""" for feature in sorted(enabled)]
    line += [f"--cfg {cfg}" for cfg in CFGS.get(package["name"], [])]
    line += [f"--extern {alias}=$(obj)/crates/lib{crate}.rmeta" for alias, crate in uses]
    if own:
        # Features and cfgs of ours are declared to Cargo, which checks their names.
        line += ["-Aunexpected_cfgs"]
    else:
        # Their tests run without overflow checks, as all crates' releases do: what wraps there is meant to. Here it would be
        # a BUG() that a guest's instruction bytes might reach.
        line += ["--cap-lints=allow", "-Coverflow-checks=n"]
    return line


def source(package: dict) -> str:
    path = TOP / STAND_INS[package["name"]][0] if package["name"] in STAND_INS else Path(library(package)["src_path"])
    return f"$(src)/{path.relative_to(TOP)}"


def rules(roots: list[str], vendor: str) -> str:
    meta = metadata(vendor)
    needed = features(roots)
    packages = {package["id"]: package for package in meta["packages"]}
    nodes = {node["id"]: node for node in meta["resolve"]["nodes"]}
    key = lambda id: (packages[id]["name"], packages[id]["version"])  # noqa: E731
    done: list[str] = []
    lines = []

    def add(id: str) -> None:
        package = packages[id]
        if id in done or key(id) not in needed:
            return
        dependencies = [dep for dep in nodes[id]["deps"] if any(kind["kind"] is None for kind in dep["dep_kinds"])]
        dependencies = [dep for dep in dependencies if key(dep["pkg"]) in needed]
        for dependency in dependencies:
            add(dependency["pkg"])
        uses = [(dep["name"], crate_name(packages[dep["pkg"]])) for dep in dependencies]
        own = package["source"] is None
        line = flags(package, needed[key(id)], uses, own)
        before = " ".join(["alloc", *(crate for _, crate in uses)])
        lines.append(f"$(eval $(call crate,{crate_name(package)},{source(package)},{' '.join(line)},{before}))")
        done.append(id)

    for root in roots:
        add(next(id for id, package in packages.items() if package["name"] == root and package["source"] is None))
    names = [crate_name(packages[id]) for id in done]
    if len(set(names)) != len(names):
        raise SystemExit(f"crates.py: two versions of one crate in {names}")
    own = [crate_name(packages[id]) for id in done if packages[id]["source"] is None]
    body = "\n".join(lines)
    return f"# Made by rust/crates.py.\ncrates := {' '.join(names)}\nown-crates := {' '.join(own)}\ndefine crate-rules\n{body}\nendef\n"


def main() -> None:
    out, vendor, *roots = sys.argv[1:]
    Path(out).write_text(rules(roots, vendor))


if __name__ == "__main__":
    main()
