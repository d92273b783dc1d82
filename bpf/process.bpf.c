// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* Programs started, processes ended. Threads are no processes, and the kernel's own ones are left out. */
#include "common/task.h"

KERNEL_STRUCT(task_struct, pid, tgid, mm, comm, real_parent, group_leader, cred, signal, start_time, exit_code)
KERNEL_STRUCT(cred, uid.val)
KERNEL_STRUCT(signal_struct, group_exit_code, live.counter)
KERNEL_STRUCT(linux_binprm, filename)

TP_BTF(sched_process_exec)
{
	struct task_struct *task = (void *)ARG(sched_process_exec, p);
	struct linux_binprm *program = (void *)ARG(sched_process_exec, bprm);
	struct task_struct *parent = task->real_parent;
	struct process_exec_event *event = process_exec_reserve();
	if (!event)
		return 0;
	event->ts = bpf_ktime_get_ns();
	event->pid = task->tgid;
	event->parent_pid = parent->tgid;
	event->uid = task->cred->uid.val;
	event->cgroup = cgroup_of(task);
	__builtin_memcpy(event->comm, task->comm, sizeof(event->comm));
	__builtin_memcpy(event->parent_comm, parent->comm, sizeof(event->parent_comm));
	if (bpf_probe_read_kernel_str(event->file, sizeof(event->file), program->filename) < 0)
		event->file[0] = 0;
	process_exec_submit(event);
	return 0;
}

static __always_inline bool is_last_thread(u64 *ctx, struct task_struct *task)
{
#if HAS_ARG(sched_process_exit, group_dead)
	return ARG(sched_process_exit, group_dead);
#else
	return !task->signal->live.counter;
#endif
}

TP_BTF(sched_process_exit)
{
	struct task_struct *task = (void *)ARG(sched_process_exit, p);
	if (!task->mm || !is_last_thread(ctx, task))
		return 0;
	struct process_exit_event *event = process_exit_reserve();
	if (!event)
		return 0;
	struct task_struct *leader = task->group_leader;
	u32 code = task->signal->group_exit_code;
	code = code ? code : leader->exit_code; /* as wait() tells it */
	event->ts = bpf_ktime_get_ns();
	event->pid = task->tgid;
	event->parent_pid = task->real_parent->tgid;
	event->uid = task->cred->uid.val;
	event->cgroup = cgroup_of(task);
	event->duration_us = (event->ts - leader->start_time) / 1000;
	event->exit_code = code >> 8;
	event->signal = code & 0x7f;
	__builtin_memcpy(event->comm, leader->comm, sizeof(event->comm));
	process_exit_submit(event);
	return 0;
}
