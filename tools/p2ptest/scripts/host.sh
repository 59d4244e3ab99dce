# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=sh
# What the machine itself must have: each thing that is missing is named with
# the command that brings it.

check_namespace() {
	missing=
	command -v mount >/dev/null || missing="$missing mount"
	command -v unshare >/dev/null && command -v setpriv >/dev/null && command -v flock >/dev/null ||
		missing="$missing util-linux"
	if [ "$(id -u)" = 0 ]; then
		[ -z "$missing" ] || die "missing packages; run: apt-get install -y$missing"
		in_namespace true 2>/dev/null ||
			die "this root may not make mount namespaces: run in a machine or a privileged container"
		return
	fi
	command -v newuidmap >/dev/null || missing="$missing uidmap"
	command -v mmdebstrap >/dev/null || missing="$missing mmdebstrap"
	[ -z "$missing" ] || die "missing packages; run: sudo apt-get install -y$missing"
	me=$(id -un)
	grep -q "^$me:" /etc/subuid 2>/dev/null && grep -q "^$me:" /etc/subgid 2>/dev/null ||
		die "$me has no subordinate ids; run: sudo usermod --add-subuids 100000-165535 --add-subgids 100000-165535 $me"
	if ! in_namespace true 2>/dev/null; then
		for knob in kernel.unprivileged_userns_clone=1 kernel.apparmor_restrict_unprivileged_userns=0; do
			file=/proc/sys/$(printf %s "${knob%=*}" | tr . /)
			[ -e "$file" ] && [ "$(cat "$file")" != "${knob#*=}" ] &&
				die "unprivileged user namespaces are off; run: sudo sysctl -w $knob"
		done
		[ "$(cat /proc/sys/user/max_user_namespaces)" != 0 ] ||
			die "unprivileged user namespaces are off; run: sudo sysctl -w user.max_user_namespaces=10000"
		die "user namespaces do not work here; run the command as root instead"
	fi
}

check_mmdebstrap() {
	command -v mmdebstrap >/dev/null && return
	command -v apt-get >/dev/null ||
		die "needs mmdebstrap, which this system has no apt-get to install: use Debian 12 or 13"
	say "installing mmdebstrap"
	{ apt-get update && apt-get install -y --no-install-recommends mmdebstrap; } \
		>"$cache/logs/mmdebstrap-install.log" 2>&1 8>&- 9>&- ||
		fail_log "installing mmdebstrap failed" "$cache/logs/mmdebstrap-install.log"
}
