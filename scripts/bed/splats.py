# SPDX-License-Identifier: MIT OR Apache-2.0
"""What a Linux kernel prints when something is wrong."""

import re

# Each begins a report; the lines after it belong to it.
PATTERNS = re.compile("|".join([
    r"Kernel panic - not syncing",
    r"\bOops\b",
    r"\bBUG:",
    r"kernel BUG at",
    r"\bWARNING:",
    r"DEBUG_LOCKS_WARN_ON",
    r"general protection fault",
    r"unable to handle",
    r"(divide|invalid opcode|double fault|stack segment|bounds|coprocessor).{0,20}: [0-9a-f]{4} \[#",
    r"unhandled (signal|exception)",
    r"scheduling while atomic",
    r"sleeping function called from invalid context",
    r"possible (circular|recursive) locking",
    r"inconsistent lock state",
    r"bad unlock balance",
    r"held lock freed",
    r"suspicious RCU usage",
    r"INFO: trying to register non-static key",
    r"INFO: task .* blocked for more than",
    r"rcu.*(detected stall|self-detected stall|detected expedited stall|kthread starved)",
    r"soft lockup|hard LOCKUP",
    r"ODEBUG:",
    r"refcount_t:",
    r"list_(add|del) corruption",
    r"kmemleak: \d+ new suspected",
    r"nobody cared",
    r"BUG at mm/|Bad page (state|map)",
]))
SHOWN_LINES = 80


def is_splat(line: str) -> bool:
    return PATTERNS.search(line) is not None
