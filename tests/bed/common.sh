# SPDX-License-Identifier: MIT OR Apache-2.0
# For the tests beside it, which begin with `. ./common.sh`: the test bed brings it along with each of them.

# check NAME COMMAND…: a test of this name, which passes if the command succeeds.
check() { name=$1; shift; if "$@"; then echo "ok $name"; else echo "not ok $name"; fi; }

# Whether this is `make soak`, in which tests have their long forms.
soak() { [ -n "${V3VEE_SOAK-}" ]; }

# held KIND: how many of these the module holds for VMs.
held() { cat /sys/kernel/debug/v3vee/$1; }

# When no VM is there, the module holds nothing.
nothing_held() { for of in pages large_pages vms threads objects files; do [ "$(held $of)" = 0 ] || { echo "$of: $(held $of)"; return 1; }; done; }

# soon COMMAND…: it succeeds within four minutes.
soon() {
	tries=0
	until "$@"; do
		tries=$((tries + 1))
		[ $tries -lt 1200 ] || { echo "never: $*"; return 1; }
		sleep 0.2
	done
}

# says FILE LINE…: the file has a line like each of these.
says() { file=$1; shift; for line; do grep -qE -e "$line" $file || { echo "no $line in"; cat $file; return 1; }; done; }

# guest_says LINE: a guest whose console goes to the file log has said that. none_says LINE: nothing in there is like it.
guest_says() { grep -qE "^guest: $1" log; }
none_says() { ! grep -E "$1" log; }

# In a Linux guest: `run WHAT COMMAND…` runs it between two lines by which its output is found.
guest_run='run() { what=$1; shift; echo "guest: $what"; "$@" 2>&1; echo "guest: $what end $?"; }'
# said WHAT: that output, in one line. It waits for its end.
said() { soon guest_says "$1 end" >/dev/null; tr -d '\r' <log | sed -n "/^guest: $1\$/,/^guest: $1 end/p" | grep -v '^guest: ' | tr '\n' ' ' | sed 's/ $//'; }
# hears: the console of the VM $guest goes to the file log from now on, and keys to it are written to descriptor 3.
hears() { rm -f keys; mkfifo keys; v3 stream $guest com1 <keys >>log 2>&1 & stream=$!; exec 3>keys; }
# ask WHAT COMMAND…: what a command in there says. ended WHAT STATUS: it ended so. does WHAT COMMAND…: it ends well.
ask() { what=$1; shift; echo "run $what $*" >&3; said $what; }
ended() { guest_says "$1 end $2"; }
does() { ask "$@" >/dev/null; ended $1 0; }

# powers_off NAME: the check that the Linux $guest, which hears, switches itself off. Its log is shown, and it is freed.
powers_off() {
	echo 'poweroff -f' >&3
	v3 wait $guest --timeout 240 >/dev/null 2>&1
	check "$1" [ $? = 0 ]
	exec 3>&-
	wait $stream
	sed "s/^/$guest| /" log
	v3 free $guest
}

# refused TEXT COMMAND…: the command fails, and says the text.
refused() { text=$1; shift; said=$("$@" 2>&1) && return 1; case $said in *"$text"*) ;; *) echo "$said"; return 1 ;; esac; }

# unpacks ARCHIVE…: the host gets programs that were made for guests (guests/disk). tool PROGRAM WORD…: runs one of them.
unpacks() { mkdir tools; for archive; do (cd tools && cpio -id <../$archive 2>/dev/null); done; }
tool() { program=$1; shift; tools/lib64/ld-linux-x86-64.so.2 --library-path tools/lib/x86_64-linux-gnu tools/bin/$program "$@"; }
