# SPDX-License-Identifier: MIT OR Apache-2.0
# What Linux saved goes on here: a VM with Linux in it, on two virtual CPUs that work and look at their clocks.
. "$TOP/tests/lwk/common.sh"
guests=$TOP/build/guests
cat >guest.toml <<TOML
name = "guest"
memory = "96M"
vcpus = 2
kernel = "$guests/linux/vmlinuz-6.12"
initrd = "$guests/linux/initramfs"
cmdline = "console=ttyS0 quiet v3.token=moved v3.script=clocks:4,poweroff"
TOML
v3 build guest.toml -o guest.img
cat >save <<'SH'
v3 create guest.img >/dev/null && v3 launch guest
v3 stream guest com1 </dev/null >console &
until grep -q 'token moved' console; do sleep 0.1; done
before=$(v3 stats guest | awk '$2 == "entries" { sum += $3 } END { print sum }')
until [ "$(v3 stats guest | awk '$2 == "entries" { sum += $3 } END { print sum }')" -gt $((before + 500)) ]; do sleep 0.1; done
v3 save --pause guest guest.v3
v3 inspect guest.v3
echo begin-of-file
gzip -1 <guest.v3 | base64
echo end-of-file
v3 free -f guest
SH
testbed run --machine svm --add guest.img --add save --timeout 600 -- sh ./save </dev/null 2>&1 | tr -d '\r' >log
sed -n '/^begin-of-file$/,/^end-of-file$/p' log | sed '1d;$d' | base64 -d | gzip -d >guest.v3
check "Linux saves a VM" sh -c 'v3 inspect guest.v3 >text && grep -q "^vcpus: 2" text'

lwk_run --image guest.v3:1-2 --cpus 3 --append new-tsc-rate --timeout 300
check "it goes on, on the lightweight kernel, to its end" [ $? = 0 ]
check "no clock stepped back, and both CPUs worked" said '^guest: ok clocks:4 2 CPUs'
check "it powers off" said '^lwk: guest: the guest powered off'
check "nothing is allocated after the launch" said '^lwk: 0 allocations since the launch'
check "it does not start anew" silent 'Linux version|token moved'

head -c 100000 guest.v3 >cut.v3
lwk_run --image cut.v3 --timeout 100
check "one that is cut off is refused" said '^lwk: cut.v3: it is cut off behind section magic'
