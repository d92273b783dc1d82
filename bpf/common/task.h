// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* What a program wants to know of a task. */
#pragma once
#include "common/probe.h"

KERNEL_STRUCT(task_struct, cgroups)
KERNEL_STRUCT(css_set, dfl_cgrp)
KERNEL_STRUCT(cgroup, kn)
KERNEL_STRUCT(kernfs_node, id)

/* The id of a task's cgroup in the unified hierarchy: the inode number of its directory. */
static __always_inline u64 cgroup_of(struct task_struct *task)
{
	return task->cgroups->dfl_cgrp->kn->id;
}
