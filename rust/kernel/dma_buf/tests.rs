// SPDX-License-Identifier: GPL-2.0

//! KUnit tests of fences and reservation objects.
