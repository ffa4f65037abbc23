# SPDX-License-Identifier: MIT OR Apache-2.0
# A processor whose VT-x lacks what guests need: insmod says what, in one line, and leaves nothing behind.
# bed: --machines vtx --cpu-model corei5_lynnfield_750 --no-module
. ./common.sh
check "no device" sh -c 'insmod v3vee.ko 2>&1 | grep -q "No such device"'
check "the reason" sh -c 'dmesg | grep "v3vee: cannot run guests here: this CPU lacks unrestricted guests"'
check "nothing is left" sh -c '! lsmod | grep -q v3vee && ! [ -e /dev/v3vee ]'
