# SPDX-License-Identifier: MIT OR Apache-2.0
# A processor with VT-x and no EPT: insmod says so in one line, and leaves nothing behind.
# bed: --machines vtx --cpu-model core2_penryn_t9600 --no-module
. ./common.sh
check "no device" sh -c 'insmod v3vee.ko 2>&1 | grep -q "No such device"'
check "the reason" sh -c 'dmesg | grep "v3vee: cannot run guests here: this CPU lacks nested paging (EPT)"'
check "nothing is left" sh -c '! lsmod | grep -q v3vee && ! [ -e /dev/v3vee ]'
