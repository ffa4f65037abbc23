# SPDX-License-Identifier: MIT OR Apache-2.0
"""The second half of scripts/bootstrap: makes what the cache lacks."""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bed import hostroot, steps  # noqa: E402

THINGS = ("root", "guests", "packaged", "debug")


def main() -> int:
    parser = argparse.ArgumentParser(prog="bootstrap", description="Makes the host root, guest kernels and debug kernel.")
    parser.add_argument("things", nargs="*", choices=[*THINGS, []], help="what to make; the root and the guests by default")
    parser.add_argument("--update", action="store_true", help="look for newer kernels in the archive")
    parser.add_argument("--print", choices=THINGS, dest="show", help="print where a thing lies, after making it if absent")
    args = parser.parse_args()
    if args.show:
        print(hostroot.ensure(args.show, args.update))
        return 0
    for thing in args.things or ("root", "guests"):
        print(f"{thing}: {hostroot.ensure(thing, args.update)}")
    return 0


if __name__ == "__main__":
    sys.exit(steps.status_of("bootstrap", main))
