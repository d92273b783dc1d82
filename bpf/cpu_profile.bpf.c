// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* What each CPU was doing when its clock fired; collector/stacks.py opens the clocks. Idle CPUs are left out. */
#include "common/stack.h"

SETTING(profile_period_ns, 20408163)

PERF_EVENT(cpu_clock)
{
	u64 thread = bpf_get_current_pid_tgid();
	if (!(u32)thread)
		return 0;
	struct cpu_profile_key key = {.pid = thread >> 32, .cgroup = bpf_get_current_cgroup_id()};
	bpf_get_current_comm(key.comm, sizeof(key.comm));
	key.user_stack = user_stack(ctx);
	key.kernel_stack = kernel_stack(ctx);
	struct cpu_profile_value *value = cpu_profile_slot(&key);
	if (value) {
		value->samples++;
		value->cpu_ns += setting(profile_period_ns);
	}
	return 0;
}
