/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Where a kernel that counts its lines has the counters, what they count, and
 * the names: in .data.  Without a place of their own the linker puts them into
 * what is freed after the boot.  The kernel's linker script ends its data with
 * CONSTRUCTORS; a macro of that name is not expanded in its own text.
 */
#define CONSTRUCTORS						\
	CONSTRUCTORS						\
	. = ALIGN(8);						\
	__start___llvm_prf_cnts = .;				\
	*(__llvm_prf_cnts)					\
	__stop___llvm_prf_cnts = .;				\
	__start___llvm_prf_data = .;				\
	*(__llvm_prf_data)					\
	__stop___llvm_prf_data = .;				\
	__start___llvm_prf_names = .;				\
	*(__llvm_prf_names)					\
	__stop___llvm_prf_names = .;
