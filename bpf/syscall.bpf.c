// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* System calls: each is counted as it returns. A second program, at the entry, would cost as much again; so it is
 * attached for a TIMED_SHARE of the time only (collector/windows.py), and what it saw is timed to the nanosecond.
 * The calls that matter most need no such luck: a thread that sleeps long does so in a call. Between two returns of
 * a thread, the time that it neither ran (sum_exec_runtime) nor waited for a CPU (run_delay) it was blocked; from
 * LONG_TICKS of the kernel's tick counter on, that is the time of the call, known to a tick, each standing for
 * itself. The others stand for TIMED_SHARE each when timed: the sum estimates the time of all.
 */
#include "common/file.h"
#include "common/near.h"
#include "common/task.h"

KERNEL_STRUCT(task_struct, pid, tgid, group_leader, comm, se.sum_exec_runtime, sched_info.run_delay)
KERNEL_STRUCT(pt_regs, ?orig_ax, ?syscallno)
SETTING(tick_ns, 4000000)
SETTING(slow_file_us, 20000)

#define PLACES 65536 /* of threads; 3 MB; a power of two */
#define TIMED_SHARE 10
#define LONG_TICKS 3
#define ERRORS 512 /* from here on they are the kernel's own, for calls that are to be made again */

struct thread {
	u32 pid;
	u32 call; /* the one that was seen to begin */
	u64 at;   /* when; 0: none was */
	u64 ticks, ran, waited; /* at the first return in the tick of the last one */
};
MAP(ARRAY, syscall_thread, u32, struct thread, PLACES)
NEAR_SIZED(syscall, 1024)
NEAR(syscall_latency)

static __always_inline struct thread *thread_of(u32 pid)
{
	u32 place = pid % PLACES;
	return bpf_map_lookup_elem(map(syscall_thread), &place);
}

RAW_TP(sys_enter)
{
	u32 pid = bpf_get_current_pid_tgid();
	struct thread *thread = thread_of(pid);
	if (!thread || thread->pid != pid)
		return 0;
	thread->call = ARG(sys_enter, id);
	thread->at = bpf_ktime_get_ns();
	return 0;
}

static __always_inline u32 call_of(struct pt_regs *regs)
{
#if HAS(pt_regs, orig_ax)
	return regs->orig_ax;
#elif HAS(pt_regs, syscallno)
	return regs->syscallno;
#else
#error "where is the number of a system call on this architecture?"
#endif
}

/* How long this thread was blocked since its last call returned, if that was long; 0 otherwise. */
static __always_inline u64 blocked_ns(struct thread *thread, struct task_struct *task)
{
	u64 now = bpf_jiffies64();
	if (now == thread->ticks)
		return 0;
	u64 ran = task->se.sum_exec_runtime, waited = task->sched_info.run_delay;
	u64 ticks = now - thread->ticks, busy = ran - thread->ran + waited - thread->waited;
	thread->ticks = now;
	thread->ran = ran;
	thread->waited = waited;
	if (ticks < LONG_TICKS)
		return 0;
	u64 tick = setting(tick_ns), passed = ticks * tick;
	return passed >= busy + (LONG_TICKS - 1) * tick ? passed - busy : 0;
}

static __always_inline void tell_slow(struct pt_regs *regs, struct task_struct *task, u32 call, s64 result, u64 took)
{
	struct operation operation = operation_of(call, result, regs, task);
	if (!operation.kind)
		return;
	struct file_io_event *event = file_io_reserve();
	if (!event)
		return;
	event->ts = bpf_ktime_get_ns();
	event->operation = call;
	event->latency_ns = took;
	event->bytes = operation.moves && result > 0 ? result : 0;
	event->error = result < 0 && result > -ERRORS ? -result : 0;
	event->pid = task->tgid;
	event->cgroup = cgroup_of(task);
	__builtin_memcpy(event->comm, task->group_leader->comm, sizeof(event->comm));
	event->device = 0;
	__builtin_memset(event->file, 0, sizeof(event->file));
	__builtin_memset(event->filesystem, 0, sizeof(event->filesystem));
	if (operation.file)
		event->device = describe(operation.file, event->file, sizeof(event->file), event->filesystem,
					 sizeof(event->filesystem));
	else if (operation.path)
		bpf_probe_read_user_str(event->file, sizeof(event->file), (void *)operation.path);
	file_io_submit(event);
}

static __always_inline void timed(struct syscall_value *value, u64 cgroup, u32 call, u64 took, u64 weight)
{
	value->timed++;
	value->time_ns += took * weight;
	struct syscall_latency_key key = {.cgroup = cgroup, .syscall = call};
	struct syscall_latency_value *latency = syscall_latency_near_slot(&key);
	if (latency)
		latency->latencies[log2_bucket(took / 1000, 27)] += weight;
}

TP_BTF(sys_exit)
{
	struct task_struct *task = (void *)bpf_get_current_task_btf();
	struct pt_regs *regs = (void *)ARG(sys_exit, regs);
	s64 result = ARG(sys_exit, ret);
	u32 pid = task->pid, call = call_of(regs);
	struct thread *thread = thread_of(pid);
	if (!thread)
		return 0;
	struct syscall_key key = {.cgroup = cgroup_of(task), .pid = task->tgid, .syscall = call};
	if (result < 0 && result > -ERRORS)
		key.error = -result;
	__builtin_memcpy(key.comm, task->group_leader->comm, sizeof(key.comm));
	struct syscall_value *value = syscall_near_slot(&key);
	if (value)
		value->count++;
	u64 blocked = blocked_ns(thread, task);
	if (thread->pid != pid) { /* another thread had this place */
		thread->pid = pid;
		thread->at = 0;
		return 0;
	}
	u64 took = thread->at && thread->call == call ? bpf_ktime_get_ns() - thread->at : blocked;
	thread->at = 0;
	if (!value || !took)
		return 0;
	timed(value, key.cgroup, call, took, blocked ? 1 : TIMED_SHARE);
	if (took >= setting(slow_file_us) * 1000)
		tell_slow(regs, task, call, result, took);
	return 0;
}
