# SPDX-License-Identifier: MIT OR Apache-2.0
# A guest that computes is left alone: its core has no tick, and it feels less of its host than under Linux.
. "$TOP/tests/lwk/common.sh"
"$TOP/scripts/bench/noise" >log
check "both figures are there" [ "$(grep -c '^.*: *noise: [0-9]* detours' log)" = 2 ]
detours() { sed -n "s/^$1: *noise: \([0-9]*\) detours.*/\1/p" log; }
cat log
check "at most one detour in 200,000,000 instructions" [ "$(detours 'lightweight kernel')" -le 1 ]
check "many under Linux, or the measure is none" [ "$(detours Linux)" -ge 20 ]
