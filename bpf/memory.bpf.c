// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* Tasks that stall for memory, and those that are killed for it. How a task stalled last tells what its request ran
 * into: the limit of a cgroup, or the end of the host's memory.
 */
#include "common/task.h"

KERNEL_STRUCT(task_struct, tgid, mm, comm, group_leader, signal)
KERNEL_STRUCT(signal_struct, oom_score_adj)
KERNEL_STRUCT(mm_struct, total_vm, pgtables_bytes.counter, rss_stat, ?rss_stat.count)
KERNEL_STRUCT(percpu_counter, count)
KERNEL_ENUM(MM_ANONPAGES, MM_FILEPAGES, MM_ANONPAGES, MM_SWAPENTS, MM_SHMEMPAGES)

enum kind { DIRECT, CGROUP, COMPACTION };   /* reclaim.kind */
enum { UNKNOWN, HOST, LIMIT };              /* oom_kill.cause */

struct stall {
	u64 at; /* 0: over */
	u32 last; /* what is short, as a cause of oom_kill */
};
MAP(LRU_HASH, memory_stalled, u32, struct stall, 8192)

static __always_inline int stalls(u32 cause)
{
	u32 pid = bpf_get_current_pid_tgid();
	struct stall stall = {.at = bpf_ktime_get_ns(), .last = cause};
	bpf_map_update_elem(map(memory_stalled), &pid, &stall, ANY);
	return 0;
}

static __always_inline int goes_on(enum kind kind, u64 pages)
{
	u32 pid = bpf_get_current_pid_tgid();
	struct stall *stall = bpf_map_lookup_elem(map(memory_stalled), &pid);
	if (!stall || !stall->at)
		return 0;
	u64 took = bpf_ktime_get_ns() - stall->at;
	stall->at = 0;
	struct reclaim_key key = {.cgroup = cgroup_of((void *)bpf_get_current_task_btf()), .kind = kind};
	struct reclaim_value *value = reclaim_slot(&key);
	if (!value)
		return 0;
	value->count++;
	value->stalled_ns += took;
	value->pages += pages;
	value->stalls[log2_bucket(took / 1000, 27)]++;
	return 0;
}

TP_BTF(mm_vmscan_direct_reclaim_begin)
{
	return stalls(HOST);
}

TP_BTF(mm_vmscan_direct_reclaim_end)
{
	return goes_on(DIRECT, ARG(mm_vmscan_direct_reclaim_end, nr_reclaimed));
}

TP_BTF(mm_vmscan_memcg_reclaim_begin)
{
	return stalls(LIMIT);
}

TP_BTF(mm_vmscan_memcg_reclaim_end)
{
	return goes_on(CGROUP, ARG(mm_vmscan_memcg_reclaim_end, nr_reclaimed));
}

/* The kernel compacts in the background too: its own threads have no memory of a program. */
static __always_inline bool is_background(void)
{
	struct task_struct *task = (void *)bpf_get_current_task_btf();
	return !task->mm;
}

TP_BTF(mm_compaction_begin)
{
	return is_background() ? 0 : stalls(HOST);
}

TP_BTF(mm_compaction_end)
{
	return is_background() ? 0 : goes_on(COMPACTION, 0);
}

#if HAS(mm_struct, rss_stat__count)
#define RESIDENT(mm, what) (*(u64 *)&(mm)->rss_stat.count[what])
#else
#define RESIDENT(mm, what) (((struct percpu_counter *)&(mm)->rss_stat[what])->count)
#endif

static __always_inline u64 resident(s64 pages)
{
	return pages > 0 ? pages * PAGE_BYTES : 0; /* counters of several CPUs may sum to less than nothing */
}

TP_BTF(mark_victim)
{
	struct task_struct *victim = (void *)ARG(mark_victim, task);
	struct task_struct *trigger = (void *)bpf_get_current_task_btf();
	u32 pid = bpf_get_current_pid_tgid();
	struct stall *stall = bpf_map_lookup_elem(map(memory_stalled), &pid);
	struct oom_kill_event *event = oom_kill_reserve();
	if (!event)
		return 0;
	__builtin_memset(event, 0, sizeof(*event));
	event->ts = bpf_ktime_get_ns();
	event->pid = victim->tgid;
	event->cgroup = cgroup_of(victim);
	event->cause = stall ? stall->last : UNKNOWN;
	event->trigger_pid = trigger->tgid;
	event->uid = ARG(mark_victim, uid);
	event->oom_score_adj = victim->signal->oom_score_adj;
	__builtin_memcpy(event->comm, victim->group_leader->comm, sizeof(event->comm));
	__builtin_memcpy(event->trigger_comm, trigger->group_leader->comm, sizeof(event->trigger_comm));
	struct mm_struct *memory = victim->mm;
	if (memory) {
		event->total_bytes = memory->total_vm * PAGE_BYTES;
		event->anonymous_bytes = resident(RESIDENT(memory, MM_ANONPAGES));
		event->file_bytes = resident(RESIDENT(memory, MM_FILEPAGES));
		event->shared_bytes = resident(RESIDENT(memory, MM_SHMEMPAGES));
		event->swapped_bytes = resident(RESIDENT(memory, MM_SWAPENTS));
		event->page_table_bytes = memory->pgtables_bytes.counter;
	}
	oom_kill_submit(event);
	return 0;
}
