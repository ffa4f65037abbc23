# SPDX-License-Identifier: MIT OR Apache-2.0
"""The table of what exits cost, beside KVM's, and the file that it is kept in."""

import json
from pathlib import Path

from bed.cache import TOP

from . import exits
from .exits import Ran

FILE = TOP / "build/bench.json"
# Ratios to KVM's instructions that are to be met, with the host's mitigations off.
MARKS = {
    "cpuid_leaf": 0.17, "hypercall": 0.17, "rdmsr": 0.2, "cr4": 0.2, "pic_in": 0.42, "post_out": 0.13, "pm_timer": 0.13, "uart_status": 0.19,
    "xapic_read": 0.21, "xapic_eoi": 0.25, "x2apic_read": 0.24, "x2apic_eoi": 0.29, "deadline_later": 0.3, "self_ipi": 0.28, "self_ipi_hlt": 0.24,
    "wbinvd": 0.25, "invd": 0.25, "toggle_pge": 0.25, "touch_2m": 0.62, "touch_4k": 0.62,
}
# With mitigations on, ratios may be larger by this.
MITIGATED = 0.03
# Instructions that are to be met without a comparison.
ABSOLUTE = {("svm-bochs", "cpuid_leaf"): 450, ("svm-bochs", "post_out"): 660}


def make() -> int:
    """Measures, prints the table, and writes it to the file."""
    rows = []
    for host, append in (("svm", ()), ("svm, mitigations", ("mitigations=auto",))):
        ran = exits.run("svm", kvm=True, traced=True, append=append)
        rows += compared(host, ran, MITIGATED if append else 0)
    for machine in ("svm-bochs", "vtx"):
        rows += alone(machine, exits.run(machine)["v3vee"])
    FILE.write_text(json.dumps(rows, indent=1) + "\n")
    print("\n".join(lines(rows)))
    return 0


def compared(host: str, ran: dict[str, Ran], allowed: float) -> list[dict]:
    ours, again, kvm = ran["v3vee"], ran["again"], ran["kvm"]
    small = ran.get("kvm with small pages", kvm)
    rows = []
    for name in ours.figures:
        theirs = small if name in small.figures and name == "touch_4k" else kvm
        row = {"name": name, "machine": host, "unit": "instructions", "v3vee": without_zeroing(ours, name), "again": without_zeroing(again, name)}
        if name in theirs.figures:
            row["kvm"] = without_zeroing(theirs, name)
            row["ratio"] = round(row["v3vee"] / row["kvm"], 3)
            row["costly"] = {"v3vee": dict(ours.traces[name].by_class), "kvm": dict(theirs.traces[name].by_class)}
        if name in MARKS and "ratio" in row:
            row["mark"] = round(MARKS[name] + allowed, 3)
            row["met"] = row["ratio"] <= row["mark"]
        rows.append(row)
    return rows


def without_zeroing(ran: Ran, name: str) -> int:
    """Zeroing of memory costs every VMM the same, and most of a first touch."""
    return round(ran.figures[name]) - ran.traces[name].zeroing()


def alone(machine: str, ran: Ran) -> list[dict]:
    rows = []
    for name, figure in ran.figures.items():
        row = {"name": name, "machine": machine, "unit": "instructions", "v3vee": round(figure)}
        if (machine, name) in ABSOLUTE:
            row["mark"] = ABSOLUTE[machine, name]
            row["met"] = figure <= row["mark"]
        rows.append(row)
    return rows


def lines(rows: list[dict]):
    for machine in dict.fromkeys(row["machine"] for row in rows):
        yield f"{machine}: instructions of one round"
        yield f"  {'':16}{'v3vee':>9}{'KVM':>9}{'ratio':>8}{'mark':>8}  costly instructions: v3vee; KVM"
        for row in rows:
            if row["machine"] == machine:
                yield "  " + line(row)


def line(row: dict) -> str:
    met = {True: "", False: " missed", None: ""}[row.get("met")]
    costly = "; ".join(in_words(each) for each in row["costly"].values()) if "costly" in row else ""
    return (f"{row['name']:16}{row['v3vee']:9}{row.get('kvm', '-'):>9}{row.get('ratio', '-'):>8}{row.get('mark', '-'):>8}{met:7}  {costly}").rstrip()


def in_words(costly: dict[str, int]) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in sorted(costly.items()))


def compare(base: list[dict], now: list[dict]) -> int:
    """Prints what is different; the status is 1 if something costs more."""
    before = {(row["machine"], row["name"]): row["v3vee"] for row in base}
    worse = 0
    for row in now:
        old, new = before.get((row["machine"], row["name"])), row["v3vee"]
        if old is not None and old != new:
            worse += new > old
            print(f"{row['machine']:18}{row['name']:16}{old:9}{new:9}{new - old:+8} ({(new - old) / old:+.1%})")
    print(f"{worse} cost more than before")
    return 1 if worse else 0


def read(file: Path) -> list[dict]:
    return json.loads(file.read_text())
