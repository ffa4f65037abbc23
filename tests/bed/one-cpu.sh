# SPDX-License-Identifier: MIT OR Apache-2.0
# One CPU, and a VM that spins with interrupts off: the host stays usable, a second VM runs to its end, the first stops.
# bed: --cpus 1 --add build/guests/tmk/tmk
# bed test: --kernel debug
. ./common.sh
cat >spin.toml <<TOML
name = "spin"
memory = "32M"
kernel = "tmk"
cmdline = "test=spin_without_interrupts"
TOML
v3 build spin.toml -o spin.img
v3 create spin.img spin >/dev/null
v3 launch spin
sleep 1
check "the host is usable" sh -c 'i=0; while [ $i -lt 2000 ]; do i=$((i + 1)); done; ls / >/dev/null'
second() { v3 run --kernel tmk --mem 64 --append test=apic_timer_periodic,pic_timer,real_mode --timeout 100 </dev/null; [ $? = 1 ]; }
check "a second VM runs to its end" second
check "the first still spins" sh -c 'v3 info spin | grep -q "state: running"'
check "the first can be stopped" v3 stop spin
check "and is" sh -c 'v3 info spin | grep -q "reason: request"'
v3 free spin
check "rmmod" rmmod v3vee
