# SPDX-License-Identifier: MIT OR Apache-2.0
"""What things cost, in instructions."""
