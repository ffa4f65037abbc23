# SPDX-License-Identifier: MIT OR Apache-2.0
# tour.sh TOKEN: inside the emulated host, what a user does on hardware: from insmod to rmmod.
set -e
token=$1
show() { echo "host# $*"; "$@"; }

show insmod v3vee.ko
show v3_create guest.img
show v3_launch guest
if [ -t 0 ]; then
	echo "The guest's console follows. Ctrl-] q leaves it; then the VM is stopped and freed."
	show v3_cons guest || true
else
	echo "host# v3_cons guest"
	# Until the guest has said its last line.
	v3_cons guest </dev/null | awk -v last="guest: token $token" '{ print; fflush() } index($0, last) { seen = 1; exit } END { exit !seen }'
fi
show v3_stats guest
show v3_stop guest
show v3_free guest
show rmmod v3vee
