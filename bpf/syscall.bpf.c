// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* System calls: each is counted, few are timed. Reading the clock costs more than everything else done here, the
 * kernel's tick counter nothing. So a call's begin is noted in ticks, and one call in SAMPLED_ONE_IN, at random
 * distances, reads the clock too. A call over LONG_TICKS or more is timed in any case and stands for itself; of
 * the others the sampled ones are timed and stand for SAMPLED_ONE_IN each: the sum estimates the time of all.
 */
#include "common/file.h"
#include "common/gap.h"
#include "common/near.h"
#include "common/task.h"

KERNEL_STRUCT(task_struct, tgid, group_leader, comm)
SETTING(tick_ns, 4000000)
SETTING(slow_file_us, 20000)

#define PLACES 65536 /* of threads that are in a call; 2 MB; a power of two */
#define SAMPLED_ONE_IN 16
#define LONG_TICKS 3
#define ERRORS 512 /* from here on they are the kernel's own, for calls that are to be made again */

struct entered {
	u64 ticks;
	u64 at; /* 0: not sampled */
	u32 pid;
	u32 call;
};
MAP(ARRAY, syscall_entered, u32, struct entered, PLACES)
GAP(syscall_gap)
NEAR_SIZED(syscall, 1024)
NEAR(syscall_latency)

static __always_inline struct entered *entered_of(u32 pid)
{
	u32 place = pid % PLACES;
	return bpf_map_lookup_elem(map(syscall_entered), &place);
}

RAW_TP(sys_enter)
{
	u32 pid = bpf_get_current_pid_tgid();
	struct entered *entered = entered_of(pid);
	if (!entered)
		return 0;
	entered->at = is_sampled(map(syscall_gap), SAMPLED_ONE_IN) ? bpf_ktime_get_ns() : 0;
	entered->ticks = bpf_jiffies64();
	entered->call = ARG(sys_enter, id);
	entered->pid = pid;
	return 0;
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
	event->error = result < 0 ? -result : 0;
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

RAW_TP(sys_exit)
{
	struct task_struct *task = (void *)bpf_get_current_task_btf();
	u32 pid = bpf_get_current_pid_tgid();
	struct entered *entered = entered_of(pid);
	if (!entered || entered->pid != pid)
		return 0; /* under way when the probe was attached, or a child's first return */
	entered->pid = 0;
	u32 call = entered->call;
	s64 result = ARG(sys_exit, ret);
	struct syscall_key key = {.cgroup = cgroup_of(task), .pid = task->tgid, .syscall = call};
	if (result < 0 && result > -ERRORS)
		key.error = -result;
	__builtin_memcpy(key.comm, task->group_leader->comm, sizeof(key.comm));
	struct syscall_value *value = syscall_near_slot(&key);
	if (!value)
		return 0;
	value->count++;
	u64 ticks = bpf_jiffies64() - entered->ticks;
	if (!entered->at && ticks < LONG_TICKS)
		return 0;
	u64 took = entered->at ? bpf_ktime_get_ns() - entered->at : ticks * setting(tick_ns);
	timed(value, key.cgroup, call, took, ticks < LONG_TICKS ? SAMPLED_ONE_IN : 1);
	if (took >= setting(slow_file_us) * 1000)
		tell_slow((void *)ARG(sys_exit, regs), task, call, key.error ? result : result < 0 ? 0 : result, took);
	return 0;
}
