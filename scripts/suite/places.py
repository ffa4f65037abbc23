# SPDX-License-Identifier: MIT OR Apache-2.0
"""How many emulated machines run at once: most of the time one keeps one CPU busy."""

import threading

TOGETHER = 2
PLACES = threading.BoundedSemaphore(TOGETHER)
