# SPDX-License-Identifier: GPL-2.0
# The project's commands.  All work is done by tools/p2ptest/scripts/run, which
# makes a toolchain folder and runs the harness in it; nothing else is needed
# on the host than git, make and, on Debian, mmdebstrap.

export T ACT FILE P2PGPU_CACHE KERNEL_SOURCE ACCEL DEBUG MODE TOPOLOGY TIMEOUT_SCALE CYCLES GUESTS REPEAT \
	RESUME JOBS SEED SEQUENCE GUIDED STEPS PROCESSES WITHOUT TARGET
# A name that shells use for something else.
export P2PGPU_SECONDS := $(SECONDS)

RUN := tools/p2ptest/scripts/run

.DEFAULT_GOAL := help
.PHONY: help demo top test bench coverage fuzz fuzz-models list series shell kernel clean distclean

help:
	@$(RUN) help

demo top test bench coverage fuzz fuzz-models list series shell kernel clean distclean:
	@$(RUN) $@
