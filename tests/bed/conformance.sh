# SPDX-License-Identifier: MIT OR Apache-2.0
# Linux as a host, held against the core's contract.
# bed: --timeout 300
cat /sys/kernel/debug/v3vee/conformance | tee report
tail -n 1 report | grep -qE '^[0-9]+ checks passed, 0 failed, 0 were not run$' && echo "ok conformance came to its end" || echo "not ok conformance: no end"
