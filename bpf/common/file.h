// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* System calls on files: which they are, and what file they were about. For those that are worth a closer look. */
#pragma once
#include "common/task.h"

KERNEL_STRUCT(task_struct, files)
KERNEL_STRUCT(files_struct, fdt)
KERNEL_STRUCT(fdtable, fd, max_fds)
KERNEL_STRUCT(file, f_inode, f_path.dentry)
KERNEL_STRUCT(dentry, d_name.name)
KERNEL_STRUCT(inode, i_mode, i_sb)
KERNEL_STRUCT(super_block, s_dev, s_type)
KERNEL_STRUCT(file_system_type, name)
KERNEL_STRUCT(pt_regs, ?di, ?si, ?orig_x0, ?regs)
SYSCALLS(read, write, pread64, pwrite64, readv, writev, preadv, pwritev, preadv2, pwritev2, copy_file_range, sendfile)
SYSCALLS(fsync, fdatasync, sync_file_range, syncfs, ftruncate, fallocate, getdents64)
SYSCALLS(open, openat, openat2, creat, unlink, unlinkat, mkdir, mkdirat, rmdir, rename, renameat, renameat2, truncate)
SYSCALLS(stat, lstat, newfstatat, statx, access, faccessat, faccessat2, readlink, readlinkat, link, linkat, symlink)

/* i_mode, the same on every architecture */
enum { FILE_TYPE = 0170000, REGULAR = 0100000, DIRECTORY = 0040000, BLOCK_DEVICE = 0060000 };
enum { NO_FILE, BY_FD, BY_RESULT, BY_PATH, BY_PATH_AT };

struct operation {
	u32 kind;
	bool moves; /* its result is a number of bytes */
	struct file *file;
	u64 path; /* in the program's memory */
};

static __always_inline u32 kind_of(u32 call)
{
	switch (call) {
	case NR_read: case NR_write: case NR_pread64: case NR_pwrite64: case NR_readv: case NR_writev:
	case NR_preadv: case NR_pwritev: case NR_preadv2: case NR_pwritev2: case NR_copy_file_range: case NR_sendfile:
	case NR_fsync: case NR_fdatasync: case NR_sync_file_range: case NR_syncfs: case NR_ftruncate:
	case NR_fallocate: case NR_getdents64:
		return BY_FD;
	case NR_open: case NR_openat: case NR_openat2: case NR_creat:
		return BY_RESULT;
	case NR_unlink: case NR_mkdir: case NR_rmdir: case NR_rename: case NR_truncate: case NR_stat: case NR_lstat:
	case NR_access: case NR_readlink: case NR_link: case NR_symlink:
		return BY_PATH;
	case NR_unlinkat: case NR_mkdirat: case NR_renameat: case NR_renameat2: case NR_newfstatat: case NR_statx:
	case NR_faccessat: case NR_faccessat2: case NR_readlinkat: case NR_linkat:
		return BY_PATH_AT;
	default:
		return NO_FILE;
	}
}

static __always_inline bool moves_bytes(u32 call)
{
	switch (call) {
	case NR_read: case NR_write: case NR_pread64: case NR_pwrite64: case NR_readv: case NR_writev:
	case NR_preadv: case NR_pwritev: case NR_preadv2: case NR_pwritev2: case NR_copy_file_range: case NR_sendfile:
		return true;
	default:
		return false;
	}
}

/* The n-th argument (0, 1) of the call that returns; the result has not yet overwritten it. */
static __always_inline u64 argument(struct pt_regs *regs, u32 n)
{
#if HAS(pt_regs, di) && HAS(pt_regs, si)
	return n ? KERNEL_READ(regs->si) : KERNEL_READ(regs->di);
#elif HAS(pt_regs, orig_x0) && HAS(pt_regs, regs)
	return n ? KERNEL_READ(regs->regs[1]) : KERNEL_READ(regs->orig_x0);
#else
	return 0;
#endif
}

static __always_inline struct file *file_of(struct task_struct *task, u64 fd)
{
	struct fdtable *table = task->files ? KERNEL_READ(task->files->fdt) : NULL;
	if (!table || fd >= KERNEL_READ(table->max_fds))
		return NULL;
	void **files = (void **)KERNEL_READ(table->fd);
	return KERNEL_READ(files[fd]);
}

static __always_inline bool is_on_disk(struct file *file)
{
	struct inode *inode = KERNEL_READ(file->f_inode);
	u32 type = inode ? KERNEL_READ(inode->i_mode) & FILE_TYPE : 0;
	return type == REGULAR || type == DIRECTORY || type == BLOCK_DEVICE;
}

/* What a call that returns was about; of kind NO_FILE when that was no file, directory or block device. */
static __always_inline struct operation operation_of(u32 call, s64 result, struct pt_regs *regs,
						     struct task_struct *task)
{
	struct operation operation = {.kind = kind_of(call), .moves = moves_bytes(call)};
	if (operation.kind == BY_FD || (operation.kind == BY_RESULT && result >= 0)) {
		operation.file = file_of(task, operation.kind == BY_FD ? argument(regs, 0) : result);
		if (!operation.file || !is_on_disk(operation.file))
			operation.kind = NO_FILE;
	} else if (operation.kind) {
		operation.path = argument(regs, operation.kind == BY_PATH || call == NR_open || call == NR_creat ? 0 : 1);
	}
	return operation;
}

/* Name of a file and of its file system's type; returns the device it is on. */
static __always_inline u32 describe(struct file *file, char *name, u32 name_size, char *type, u32 type_size)
{
	struct inode *inode = KERNEL_READ(file->f_inode);
	struct super_block *super = inode ? KERNEL_READ(inode->i_sb) : NULL;
	struct dentry *dentry = KERNEL_READ(file->f_path.dentry);
	if (dentry)
		bpf_probe_read_kernel_str(name, name_size, KERNEL_READ(dentry->d_name.name));
	if (!super)
		return 0;
	struct file_system_type *kind = KERNEL_READ(super->s_type);
	if (kind)
		bpf_probe_read_kernel_str(type, type_size, KERNEL_READ(kind->name));
	return KERNEL_READ(super->s_dev);
}
