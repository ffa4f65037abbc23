# SPDX-License-Identifier: MIT OR Apache-2.0
"""Where emulated machines run: first come, first served, two at once, as most of the time one keeps one CPU busy."""

from concurrent.futures import ThreadPoolExecutor

PLACES = ThreadPoolExecutor(max_workers=2)
