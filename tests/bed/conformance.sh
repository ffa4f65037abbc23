# SPDX-License-Identifier: MIT OR Apache-2.0
# Linux as a host, held against the core's contract.
# bed: --timeout 300
cat /sys/kernel/debug/v3vee/conformance
