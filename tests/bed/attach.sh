# SPDX-License-Identifier: MIT OR Apache-2.0
# Devices come to VMs and go, and all that they held comes back: two hundred times under a guest that sends all the time, and once for
# each far end with Linux' own driver in the guest. Linux on the debug kernel is slow, and left out there.
# bed: --machines svm,vtx --timeout 900 --add build/tools/module-tests
# bed: --add build/guests/linux/initramfs --add build/guests/linux/vmlinuz-6.12
. ./common.sh

./module-tests --include-ignored --test-threads=1 devices::
tests=$?
check "nothing is held after the tests" nothing_held
if [ -e /proc/lockdep ]; then
	check "rmmod" rmmod v3vee
	exit $tests
fi

cat >linux.toml <<TOML
name = "linux"
memory = "256M"
kernel = "vmlinuz-6.12"
initrd = "initramfs"
cmdline = "console=ttyS0 quiet v3.token=attach"
TOML
v3 build linux.toml -o linux.img
v3 create linux.img >/dev/null
v3 devices linux >before
mkfifo keys
v3 stream linux com1 <keys >log 2>&1 &
stream=$!
exec 3>keys
v3 launch linux
check "the guest comes up" soon grep -q "^guest: token attach" log
# In the guest: `tell NAME` sends a line at the third serial port, which came after Linux had looked for such ports. `talk NAME` also waits for
# one. The port is opened once: Linux throws away what a port received before.
echo 'find() { probe serial /dev/ttyS2 && stty -F /dev/ttyS2 raw -echo; }' >&3
echo 'tell() { find && echo "words of $1" >/dev/ttyS2; }' >&3
echo 'talk() { find && { echo "words of $1" >&9 && read -r line <&9 && echo "guest: $1 heard $line"; } 9<>/dev/ttyS2; }' >&3
attach() { v3 attach linux serial --port 0x3e8 "$@"; }
heard() { grep -q "^guest: $1 heard answer $1" log; }
first_line_is() { [ "$(timeout 60 head -n 1 <$1)" = "$2" ]; }

# Somebody opens the terminal, closes it, and opens it again.
terminal=$(attach --pty)
check "a terminal is attached" [ -c "$terminal" ]
echo "tell pty" >&3
check "what the guest sends arrives at a terminal" first_line_is $terminal "words of pty"
echo "talk pty" >&3
check "also when it is opened again" first_line_is $terminal "words of pty"
(echo "answer pty" >$terminal; sleep 1)
check "what is typed there arrives at the guest" soon heard pty
check "the terminal is detached" v3 detach linux com3
check "the terminal is gone" sh -c "! [ -e $terminal ]"

mkfifo pipe.in pipe.out
check "pipes are attached" [ "$(attach --pipe pipe)" = com3 ]
echo "talk pipe" >&3
check "what the guest sends arrives at a pipe" first_line_is pipe.out "words of pipe"
echo "answer pipe" >pipe.in
check "what comes through a pipe arrives at the guest" soon heard pipe
check "pipes are detached" v3 detach linux com3

check "a file is attached" [ "$(attach --file file)" = com3 ]
echo "tell file" >&3
check "what the guest sends arrives in a file" soon grep -q "^words of file" file
check "a file is detached" v3 detach linux com3

V3_LISTEN=socket ./module-tests --include-ignored --nocapture --exact devices::a_listener_hears_and_answers >listener 2>&1 &
listener=$!
soon [ -S socket ]
check "a socket is attached" [ "$(attach --socket socket)" = com3 ]
echo "talk socket" >&3
check "what the guest sends arrives at a socket" soon grep -q "heard words of socket" listener
check "what comes through a socket arrives at the guest" soon heard socket
check "a socket is detached" v3 detach linux com3
wait $listener
check "who listened sees the end" [ $? = 0 ]

mkfifo input
v3 attach linux serial --port 0x3e8 --stdio <input >output 2>said &
stdio=$!
exec 4>input
soon sh -c 'v3 devices linux | grep -q com3'
echo "talk stdio" >&3
check "what the guest sends arrives at standard output" soon grep -q "^words of stdio" output
echo "answer stdio" >&4
check "what comes from standard input arrives at the guest" soon heard stdio
kill $stdio
wait $stdio
check "a signal ends it" [ $? = 143 ]
exec 4>&-
check "standard streams were detached" sh -c '! v3 devices linux | grep -q com3'

v3 devices linux >after
check "the devices are those from before" cmp before after
check "no file is held" [ "$(held files)" = 0 ]
echo "poweroff -f" >&3
v3 wait linux --timeout 120 >/dev/null 2>&1
check "the guest powers off" [ $? = 0 ]
exec 3>&-
wait $stream
check "the guest's kernel saw nothing wrong" sh -c '! grep -E "BUG|WARNING|nobody cared|too much work|Call Trace" log'
sed "s/^/linux| /" log
v3 free linux
check "nothing is held" nothing_held
check "rmmod" rmmod v3vee
exit $tests
