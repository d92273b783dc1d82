// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
#include "common/probe.h"

KERNEL_STRUCT(cgroup, kn, root)
KERNEL_STRUCT(cgroup_root, hierarchy_id)
KERNEL_STRUCT(kernfs_node, id)

enum { MADE, REMOVED };

static __always_inline int tell(struct cgroup *cgroup, const char *path, u8 change)
{
	if (cgroup->root->hierarchy_id) /* a hierarchy of cgroup v1 */
		return 0;
	struct cgroup_event_event *event = cgroup_event_reserve();
	if (!event)
		return 0;
	event->ts = bpf_ktime_get_ns();
	event->id = cgroup->kn->id;
	event->change = change;
	if (bpf_probe_read_kernel_str(event->cgroup, sizeof(event->cgroup), path) < 0)
		event->cgroup[0] = 0;
	cgroup_event_submit(event);
	return 0;
}

TP_BTF(cgroup_mkdir)
{
	return tell((void *)ARG(cgroup_mkdir, cgrp), (void *)ARG(cgroup_mkdir, path), MADE);
}

TP_BTF(cgroup_rmdir)
{
	return tell((void *)ARG(cgroup_rmdir, cgrp), (void *)ARG(cgroup_rmdir, path), REMOVED);
}
