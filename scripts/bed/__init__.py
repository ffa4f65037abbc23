# SPDX-License-Identifier: MIT OR Apache-2.0
"""The test bed: the host root, the emulated host, and running commands in it. Python's standard library only."""
