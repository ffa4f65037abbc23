# SPDX-License-Identifier: MIT OR Apache-2.0
# Several guests at once: what one does to itself leaves the others alone; and what cannot be started is told, line by line.
. "$TOP/tests/lwk/common.sh"
linux() { # NAME VCPUS SCRIPT
	cat >"$1.toml" <<-TOML
		name = "$1"
		memory = "256M"
		vcpus = $2
		kernel = "$TOP/build/guests/linux/vmlinuz"
		initrd = "$TOP/build/guests/linux/initramfs"
		cmdline = "console=ttyS0 quiet v3.token=$1 v3.script=$3"
	TOML
	v3 build "$1.toml" -o "$1.img"
}

linux pair 2 load:3,poweroff
image fault 64 1 test=triple_fault
lwk_run --cpus 3 --image pair.img:1-2 --image fault.img:3
check "two guests, one with two CPUs: the kernel switches off" [ $? = 0 ]
check "the one triple-faults" said '^lwk: fault: triple fault at rip'
check "the other goes on" before '^lwk: fault: triple fault at rip' '^guest: token pair'
check "the other does its work" said '^guest: ok load'
check "the other ends by itself" said '^lwk: pair: the guest powered off'
check "each on its cores" said '^lwk: pair: 256 MiB, on cores \[1, 2\], console on serial port 1'
check "the second console is the second port" said '^lwk: fault: 64 MiB, on cores \[3\], console on serial port 2'
check "nothing is allocated after the launch" said '^lwk: 0 allocations since the launch'

# One core for two vCPUs and another VM: all get their turn.
image two 256 2 "test=several cpus=2"
image one 256 1 "test=all"
lwk_run --cpus 1 --image two.img:0 --image one.img:0 --timeout 600
check "two VMs share a core with the kernel" [ $? = 0 ]
check "three vCPUs share one core" said '^lwk: two: the guest ended its test with status 1$'
check "the vCPU of the other VM, too" said '^lwk: one: the guest ended its test with status 1$'
check "they waited for each other" said '^lwk: one: vcpu 0: .* waiting [1-9]'

# The same image twice, and more VMs than there are serial ports.
image same 64 1 "test=cpuid_signature"
lwk_run --cpus 4 --image same.img:1 --append "vm=same.img cores=2 vm=same.img cores=3 vm=same.img cores=4"
check "one image, four VMs" [ "$(grep -c 'the guest ended its test with status 1$' log)" = 4 ]

# What cannot be started leaves alone what can.
image good 64 1 "test=cpuid_signature"
image big 900000 1 "test=cpuid_signature"
cp good.img corrupt.img; printf 'corrupt' | dd of=corrupt.img bs=1 seek=$(($(wc -c <good.img) - 4096)) conv=notrunc 2>/dev/null
head -c 100 good.img >short.img
: >empty.img
lwk_run --image corrupt.img:1 --image short.img:1 --image big.img:1 --image good.img:1 --image empty.img \
	--append "vm=absent.img vm=good.img cores=1-9 vm=good.img cores=x vm=good.img cores=2-1"
check "bad ones and a good one: the kernel switches off" [ $? = 0 ]
check "no module" said '^lwk: absent.img: the boot loader brought no such module'
check "a corrupt image" said '^lwk: corrupt.img: .*checksum'
check "an image cut short" said '^lwk: short.img: '
check "an empty image" said '^lwk: empty.img: '
check "more cores than there are" said '^lwk: good.img: cores=1-9: more than there are; this machine has 0-2'
check "cores that are no numbers" said '^lwk: good.img: cores=x: not a list of numbers'
check "no cores" said '^lwk: good.img: cores=2-1: none'
check "too little memory" said '^lwk: big.img: no 900000 MiB of memory in one piece for the guest'
check "the good one runs" said '^lwk: good: the guest ended its test with status 1'

lwk_run
check "no VM asked for" said '^lwk: no VM runs; the command line asks for one'
lwk_run --mem 32 --image big.img
check "a machine with little memory" said '^lwk: big.img: no 900000 MiB'
lwk_run --cpu-model max,svm=off --image good.img
check "a machine without virtualization" said '^lwk: cannot run guests here: '

# Keys. The guest spins for ever.
image spin 64 1 "test=spin_without_interrupts"
lwk_run --image spin.img:1 --type 'spinning=\x1ds' --type 'vcpu 0:   entries=\x1dx' --type 'stop all VMs=\x1dq'
check "a VM is stopped by a key" [ $? = 0 ]
check "statistics by a key" before '^lwk: spin: vcpu 0:   entries' '^lwk: Ctrl-\] s: statistics'
check "stopped on request" said '^lwk: spin: stopped on request'

# An error of the machine, on core 0, which idles.
lwk_run --image spin.img:1 --monitor 'spinning=mce 0 1 0xb200000000000000 5 0 0'
check "an error of the machine is a panic" [ $? = 200 ]
check "which says so" said '^lwk: panic on CPU 0: #MC, machine check'
