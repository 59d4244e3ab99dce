# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=sh
# The toolchain folder: Debian's compilers, QEMU and kernel source, in a root
# folder of their own.

suite=trixie
kernel_package=linux-source-7.3
# From backports where they are newer than the suite's.
packages="bc bindgen bison busybox-static ca-certificates cargo cpio
flex gcc git kmod libc6-dev libdrm-dev libelf-dev libssl-dev make patch
perl pkg-config python3 python3-sphinx python3-yaml qemu-system-x86 rust-clippy rust-src rustc rustfmt
strace xz-utils $kernel_package"
min_free_gib=13

toolchain_key() {
	{ printf '%s\n' "$suite" $packages; cat "$scripts/toolchain.sh"; } | sha256sum | cut -c1-16
}

toolchain_fresh() {
	[ "$(cat "$root/.p2pgpu-key" 2>/dev/null)" = "$key" ]
}

# Sets $root to the folder, made now if it is missing or stale.
toolchain_ensure() {
	[ "$(uname -m)" = x86_64 ] || die "needs an x86-64 machine, this one is $(uname -m)"
	mkdir -p "$cache/logs" || die "cannot write to the cache folder $cache: set P2PGPU_CACHE"
	cache=$(cd "$cache" && pwd -P)
	root=$cache/toolchain
	key=$(toolchain_key)
	check_namespace
	# Whoever uses the folder shares the lock; whoever makes it is alone.
	exec 8>"$cache/lock"
	wait_lock 8 -s "another run is setting up $cache"
	toolchain_fresh && return
	wait_lock 8 -x "another run uses $cache, which this one has to set up anew"
	toolchain_fresh || toolchain_make
	flock -s 8
}

toolchain_make() {
	free=$(df -Pk "$cache" | awk 'NR == 2 { print int($4 / 1048576) }')
	[ "$free" -ge "$min_free_gib" ] ||
		say "warning: $cache has $free GiB free, the set-up may need $min_free_gib GiB"
	check_mmdebstrap
	log=$cache/logs/toolchain.log
	new=$cache/toolchain.new
	start=$(now)
	say "toolchain folder: Debian $suite base system (log: $log)"
	in_namespace rm -rf "$new" "$root"
	mkdir -p "$new"
	# A tar, unpacked in our own namespace: the files belong to the ids that
	# later commands see, whatever mode mmdebstrap chose.
	{ mmdebstrap --variant=apt --include=ca-certificates \
		--aptopt='Acquire::Retries "3"' --dpkgopt=force-unsafe-io \
		--dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
		--dpkgopt='path-exclude=/usr/share/locale/*' \
		--format=tar "$suite" "$cache/base.tar"; } >"$log" 2>&1 8>&- 9>&- ||
		fail_log "mmdebstrap failed (needs a network that reaches a Debian mirror)" "$log"
	in_namespace tar -C "$new" -xf "$cache/base.tar" --exclude='./dev/*' 2>>"$log" ||
		fail_log "unpacking the base system failed" "$log"
	rm -f "$cache/base.tar"
	mkdir -p "$new/dev" "$new/proc" "$new/sys" "$new/tmp"
	say "toolchain folder: base system done, $(($(now) - start))s; packages follow"
	enter "$new" true >>"$log" 2>&1 || fail_log "entering the toolchain folder failed" "$log"
	# The mirror is the one that mmdebstrap chose.
	enter "$new" sh -c 'sed -n "s|^deb \(\[.*\] \)\{0,1\}\(http[^ ]*\) $1 main.*|deb \1\2 $1-backports main|p" \
		/etc/apt/sources.list | head -n 1 >/etc/apt/sources.list.d/backports.list &&
		test -s /etc/apt/sources.list.d/backports.list' sh "$suite" ||
		die "mmdebstrap's list of sources names no mirror: $new/etc/apt/sources.list"
	enter "$new" apt-get -q update >>"$log" 2>&1 ||
		fail_log "apt-get update failed (needs a network that reaches a Debian mirror)" "$log"
	# shellcheck disable=SC2086
	{ toolchain_install $packages &&
		toolchain_install_llvm &&
		enter "$new" apt-get clean >>"$log" 2>&1 &&
		in_namespace sh -c 'printf "%s\n" "$1" >"$2/.p2pgpu-key"' sh "$key" "$new"; } | show_apt
	[ -s "$new/.p2pgpu-key" ] || fail_log "installing the packages failed" "$log"
	sync "$new/.p2pgpu-key"
	mv "$new" "$root"
	say "toolchain folder ready, $(($(now) - start))s"
}

toolchain_install() {
	enter "$new" apt-get -q -y --no-install-recommends -o APT::Status-Fd=3 \
		-t "$suite-backports" install "$@" 3>&1 >>"$log" 2>&1
}

# The LLVM that rustc is made with: Rust code inlines what clang compiles of the kernel. The
# version is part of the packages' names, as in clang-19, and of a folder's. "inside" looks for
# tools in that one, but bindgen goes on with the libclang that it came with.
toolchain_install_llvm() {
	version=$(enter "$new" rustc -vV | sed -n 's/^LLVM version: \([0-9]*\).*/\1/p') &&
		enter "$new" sh -c 'ln -s "$(dirname /usr/lib/llvm-*/lib/libclang.so)" /usr/lib/libclang' &&
		toolchain_install "clang-$version" "lld-$version" "llvm-$version" &&
		enter "$new" ln -s "llvm-$version" /usr/lib/llvm
}

# Only what we made goes: the folder may be one that the user keeps more in.
toolchain_remove() {
	[ -d "$cache" ] || return 0
	cache=$(cd "$cache" && pwd -P)
	exec 8>"$cache/lock"
	wait_lock 8 -x "another run uses $cache"
	for name in toolchain toolchain.new base.tar linux linux.new kernel cargo target \
			logs cargo.lock kernel.lock lock; do
		[ ! -e "$cache/$name" ] || in_namespace rm -rf "$cache/$name"
	done
	rmdir "$cache" 2>/dev/null || :
}
