# SPDX-License-Identifier: MIT OR Apache-2.0
# Looks into VMs: what `v3 debug` shows of a guest is what the guest says of itself, and nothing of it changes; of one that is paused, of Linux
# that runs, and of others as module-tests have them.
# Under Bochs it takes five minutes.
# bed soak: --machines svm,vtx
# bed: --timeout 1800 --add build/tools/module-tests --add build/guests/tmk/tmk
# bed: --add build/guests/linux/initramfs --add build/guests/linux/vmlinuz-6.12
. ./common.sh

./module-tests --include-ignored --test-threads=1 debug::

# A guest that says where its pages are.
printf 'name = "pages"\nmemory = "160M"\nkernel = "tmk"\ncmdline = "test=pages_to_look_at"\n' >pages.toml
v3 create -b pages.toml >/dev/null
mkfifo none
v3 stream pages com1 <none >log 2>&1 &
exec 4>none
v3 launch pages
check "the guest says where its pages are" soon grep -q '^absent' log
v3 pause pages
v3 debug pages --json >before
v3 stats pages -a | grep -E 'pages|bytes' >taken.before

# by NAME: fields of what the guest said: address, guest-physical address, where the entry is, its value.
by() { sed -n "s/\r//; s/^$1 \(0x[0-9a-f]*\) is at \(0x[0-9a-f]*\) by \(0x[0-9a-f]*\) \(0x[0-9a-f]*\)/\1 \2 \3 \4/p" log; }
set -- $(by written)
written=$1
v3 debug pages --walk $1 >walk
check "the walk leads where the guest mapped" says walk '^vcpu 0: 0x[0-9a-f]+, 4-level paging' \
	"^  level 1 PTE +at $3  $4  present write execute accessed dirty page\$" "^guest-physical $2: a page of 4 KiB, which allows reads, writes"
check "by four levels" [ "$(sed -n '1,/^guest-physical/p' walk | grep -c '^  level')" = 4 ]
check "the host's memory is shown" says walk '^host-physical 0x[0-9a-f]+: a page of .*which allows reads, writes'
v3 debug pages --walk $1 --json >json
check "for programs" says json "\"end\":\"mapped\"" "\"gpa\":\"$2\"" '"name":"PTE"' '"place":"memory"' '"nested":\[\{"level":[45],"name":"PML[45]E"'
v3 debug pages --memory $1,20 >dump
check "what the guest wrote" says dump '\|what the guest w\|' '\|rote\|'
v3 debug pages --physical $2,20 >dump
check "by its physical address, too" says dump '\|what the guest w\|' '\|rote\|'
v3 debug pages --memory $1,20 --json >json
check "for programs" says json "\"gpa\":\"$2\",\"bytes\":\"7768617420746865"

set -- $(by untouched)
for again in 1 2; do v3 debug pages --walk $1 >walk; done
check "the entry of a page that nobody touched" says walk "^  level 1 PTE +at $3  $4  present execute page\$" "^guest-physical $2: .*allows reads, execution; not user mode"
check "has no frame" says walk 'the page has no frame: not touched yet'
v3 debug pages --memory $1,64 >dump; status=$?
check "it is said, and is no failure" says dump 'not touched yet, it reads as zeroes'
check "status 0" [ $status = 0 ]

absent=$(sed -n 's/\r//; s/^absent //p' log)
v3 debug pages --walk $absent >walk
check "a page that is not there" says walk '^  not present at level 1$'
v3 debug pages --memory $absent >dump 2>&1; status=$?
check "cannot be shown" says dump '^v3: 0x[0-9a-f]+: not present at level 1$' '^hint: .*--walk'
check "status 125" [ $status = 125 ]
v3 debug pages --memory $(printf 0x%x $((written + 4090))),16 >dump
check "memory that ends at a page" says dump '  not present at level 1$' '00  +\|'
v3 debug pages --memory 0xfee00000 >dump 2>&1
check "the local APIC is not asked" says dump '^hint: the local APIC answers there'
v3 debug pages --walk 0xfec00000 >walk
check "nor the I/O APIC" says walk 'no memory is there' 'the I/O APIC answers there'
v3 debug pages --physical 0xfed00000 >dump 2>&1
check "nor a device" says dump '^hint: the device hpet answers there'
v3 debug pages --walk 0x8000000000000000 >dump 2>&1
check "an address that is not canonical" says dump 'v3: 0x8000000000000000: the address is not canonical'
v3 debug pages --vcpu 1 >dump 2>&1
check "no such virtual CPU" says dump '^v3: cannot look into pages: the VM has no such virtual CPU' '^hint: they count from 0'

v3 debug pages >text
check "all of it in words" says text '^pages: paused' '^vcpu 0: runs, 64-bit code' '^  rax +0x' '^  code:' '^  stack:' '^  last exits' \
	'^  local APIC: xapic, id 0' '^    lint0 +extint|^    lint0' '^  pending: ' '^I/O APIC: id' '^PIC pair' '^  secondary '
v3 debug pages --json >after
v3 stats pages -a | grep -E 'pages|bytes' >taken.after
check "nothing has changed" cmp before after
check "no memory was taken" cmp taken.before taken.after
v3 continue pages
check "it goes on" [ "$(v3 info pages | sed -n 's/^state: //p')" = running ]
v3 free -f pages
exec 4>&-

# Linux, on two CPUs, while it runs and works. With page-table isolation its code would be missing from the tables that it has in user mode.
cat >linux.toml <<TOML
name = "linux"
memory = "256M"
vcpus = 2
kernel = "vmlinuz-6.12"
initrd = "initramfs"
cmdline = "console=ttyS0 quiet v3.token=debug nokaslr nopti"
TOML
v3 create -b linux.toml >/dev/null
mkfifo keys
v3 stream linux com1 <keys >linux.log 2>&1 &
exec 3>keys
v3 launch linux
check "Linux comes up" soon grep -q '^guest: token debug' linux.log
echo 'while :; do :; done &' >&3
echo 'grep " _text$" /proc/kallsyms' >&3
check "it says where its code is" soon grep -q 'T _text\|t _text' linux.log
check "it is looked into again and again" sh -c 'for n in 1 2 3 4 5; do v3 debug linux >text && v3 debug linux --json >json || exit 1; done'
check "both CPUs are there" says text '^linux: running' '^vcpu 0:' '^vcpu 1:' 'timer +(tsc-deadline|one-shot|periodic) vector 0x'
check "for programs" says json '"vcpus":\[\{"vcpu":0,.*"vcpu":1,.*"chipset":\{"ioapic":\{"id":'
text=0x$(sed -n 's/\r//; s/^\([0-9a-f]*\) [Tt] _text$/\1/p' linux.log | head -n 1)
v3 debug linux --walk $text --vcpu 1 >walk
check "a walk to its code" says walk '^vcpu 1: .*(4|5)-level paging' '^  level 2 PDE .* page$' '^guest-physical 0x1000000: a page of 2 MiB'
v3 debug linux --walk $text --json >json
check "for programs" says json '"gpa":"0x1000000"'
v3 debug linux --memory $text,64 >dump
check "its code is read" [ "$(wc -l <dump)" = 4 ]
v3 pause linux
v3 debug linux --json >before
v3 debug linux >text && v3 debug linux --walk $text >walk && v3 debug linux --memory $text,4K >dump
v3 debug linux --json >after
check "nothing of it has changed" cmp before after
v3 continue linux
echo 'poweroff -f' >&3
check "it comes to its end" timeout 200 v3 wait linux
v3 debug linux >text
check "one that has stopped is looked into" says text '^linux: stopped' '^I/O APIC'
v3 free linux
