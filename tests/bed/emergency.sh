# SPDX-License-Identifier: MIT OR Apache-2.0
# The host is reset under VMs without any farewell, as the last of the magic keys does.
# bed: --mem 640 --add build/guests/tmk/tmk --add tests/bed/panic.sh --timeout 200 --expect "sysrq: Resetting" --goes-down
# bed test: --kernel stock
key=b
. ./panic.sh
