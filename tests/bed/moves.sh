# SPDX-License-Identifier: MIT OR Apache-2.0
# A Linux guest on 4 CPUs boots and works while its CPUs are moved 200 times, in `make soak` 2,000 times. Its load tells of each lost
# wake-up, child or shoot-down, and of each clock that goes back.
# bed soak: --timeout 7200
# bed test: --timeout 1500 --kernel stock
# bed: --add build/guests/linux/initramfs --add build/guests/linux/vmlinuz-6.12
. ./common.sh
if soak; then MOVES=2000; else MOVES=200; fi
# The counters of the host's CPUs agree, whichever clock it keeps its own time by: as in the first seconds after its boot.
echo acpi_pm >/sys/devices/system/clocksource/clocksource0/current_clocksource
# Ahead of the guest, so that moves come close upon each other.
renice -n -15 -p $$
cat >moved.toml <<TOML
name = "moved"
memory = "512M"
vcpus = 4
kernel = "vmlinuz-6.12"
initrd = "initramfs"
cmdline = "console=ttyS0 quiet v3.token=moved v3.script=load,poweroff"
TOML
v3 build moved.toml -o moved.img
v3 create moved.img >/dev/null
mkfifo keys
v3 stream moved com1 <keys >log 2>&1 &
stream=$!
exec 3>keys
v3 launch moved

# Move number i: each vCPU in turn, to the other CPU each time.
done=0 failed=0
move() { v3 core-move moved $(($1 % 4)) $((1 + $1 / 4 % 2)) || failed=$((failed + 1)); done=$((done + 1)); }
# While it boots, up to a half of them; and the rest once it works.
until grep -q "^guest: token moved" log; do
	if [ $done -lt $((MOVES / 2)) ]; then move $done; else sleep 1; fi
	v3 info moved | grep -q "state: running" || break
done
echo "$done moves until it was up"
while [ $done -lt $MOVES ] && [ $failed = 0 ]; do move $done; done
v3 info moved | grep -q "state: running" || { v3 info moved; cat log; echo "not ok the guest ended early"; exit 1; }
check "$MOVES moves" [ $failed = 0 ]
check "the guest works on" sh -c 'v3 info moved | grep -q "state: running" && ! grep -q "^guest: .* load" log'
v3 core-move moved 3 any
check "where its CPUs may run" sh -c 'v3 info moved | grep -qx "pins: 2, 2, 2, any"'
v3 stats moved | grep cpu_changes
changes=$(v3 stats moved | awk '/cpu_changes/ { sum += $NF } END { print sum }')
check "it went from CPU to CPU ($changes times)" [ "$changes" -ge $((MOVES / 4)) ]

echo >&3
v3 wait moved --timeout 300
check "it powers off" [ $? = 0 ]
exec 3>&-
wait $stream
sed "s/^/moved| /" log
check "nothing was lost, and no clock went back" grep -q "^guest: ok load 4 CPUs" log
check "the guest's kernel saw nothing wrong" sh -c '! grep -E "BUG|WARNING|soft lockup|rcu.*stall|Call Trace" log'
v3 free moved
check "rmmod" rmmod v3vee
