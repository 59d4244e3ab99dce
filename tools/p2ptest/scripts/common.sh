# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=sh
# Messages, locks, progress, and entering the toolchain folder.

cache=${P2PGPU_CACHE:-${XDG_CACHE_HOME:-${HOME:?HOME is not set}/.cache}/p2pgpu}

say() { printf '%s\n' "p2pgpu: $*" >&2; }
die() { say "$*"; exit 1; }
now() { date +%s; }

fail_log() { # message, log
	say "$1; the last lines of $2:"
	tail -n 20 "$2" | sed 's/^/  | /' >&2
	die "full log: $2"
}

wait_lock() { # fd, -s or -x, what holds it
	flock -n "$2" "$1" && return
	say "$3: waiting for it to end"
	flock "$2" "$1"
}

# Counts the lines that match a pattern: on a terminal in place, else every
# tenth.  Reads stdin to its end.
show_counted() { # pattern, label
	_n=0 _start=$(now)
	while IFS= read -r _line; do
		case $_line in
		*$1*) _n=$((_n + 1)) ;;
		*) continue ;;
		esac
		if [ -t 2 ]; then
			printf '\r\033[K%s %s, %ss' "$2" "$_n" "$(($(now) - _start))" >&2
		elif [ $((_n % 25)) = 0 ]; then
			say "$2 $_n, $(($(now) - _start))s"
		fi
	done
	[ "$_n" = 0 ] && return
	if [ -t 2 ]; then printf '\r\033[K' >&2; fi
	say "$2 $_n, $(($(now) - _start))s"
}

# Reads apt's status lines: "dlstatus:N:PERCENT:TEXT", "pmstatus:PKG:PERCENT:TEXT".
show_apt() {
	_last= _start=$(now)
	while IFS=: read -r _kind _what _percent _text; do
		case $_kind in
		dlstatus) _label=download ;;
		pmstatus) _label=install ;;
		*) continue ;;
		esac
		_percent=${_percent%%.*}
		if [ -t 2 ]; then
			printf '\r\033[Kpackages: %s %s%%, %ss  %.50s' "$_label" "$_percent" \
				"$(($(now) - _start))" "$_text" >&2
		elif [ "$_label$((_percent / 20))" != "$_last" ]; then
			_last=$_label$((_percent / 20))
			say "packages: $_label $_percent%, $(($(now) - _start))s"
		fi
	done
	if [ -t 2 ]; then printf '\r\033[K' >&2; fi
}

# A namespace that ends with everything in it when we do.  Root needs no user
# namespace; anyone else gets one in which they are root.
in_namespace() {
	set -- unshare --mount --pid --fork --kill-child="${kill_child:-KILL}" "$@"
	if [ "$(id -u)" != 0 ]; then
		shift
		set -- unshare --user --map-root-user --map-auto "$@"
	fi
	setpriv --pdeathsig KILL "$@"
}

enter() { # root folder, command...
	in_namespace sh "$scripts/inside" "$cache" "$top" "$@"
}
