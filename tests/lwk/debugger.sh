# SPDX-License-Identifier: MIT OR Apache-2.0
# gdb: the machine waits for it, and the line that is printed, pasted as it is, finds the core's functions when a guest runs.
. "$TOP/tests/lwk/common.sh"
image tmk 64 1 "test=cpuid_signature"
exec 3< <(lwk run --gdb --image tmk.img </dev/null 2>&1 >log; echo "status $?")
while read -r line <&3; do case $line in "$TOP"/scripts/in-root\ gdb*) break ;; esac; done
sh -c "$line -batch -ex 'rbreak Vcpu.*::dispatch' -ex continue -ex backtrace -ex delete -ex detach" </dev/null >gdb.log 2>&1
status=$(tail -n 1 <&3)
check "a breakpoint in the core is hit" grep -qE 'hit Breakpoint .*palacios_core::vcpu::owned::Vcpu.*::dispatch' gdb.log
check "its callers have names, to the thread's begin" grep -qE '^#[0-9]+ .* in (lwk::kernel::thread::life::)?thread_(main|begin) ' gdb.log
check "the guest then runs to its end" said '^ok cpuid_signature'
check "and the kernel switches off" [ "$status" = "status 0" ]
