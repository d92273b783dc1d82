// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* Block requests from their issue to the device until completion. The kernel stamps a request's issue only for
 * queues that ask for it (wbt, kyber), so the stamp is ours, in a table by request; its allocation
 * (start_time_ns), which tells the time queued before, is always stamped where statistics are on.
 * Requests issued before the probe was attached are left out.
 */
#include "common/task.h"

KERNEL_STRUCT(request, q, cmd_flags, __data_len, __sector, start_time_ns)
KERNEL_STRUCT(request_queue, disk)
KERNEL_STRUCT(gendisk, major, first_minor)
SETTING(slow_io_us, 20000)

#define OPERATION_MASK 0xff
#define MINOR_BITS 20

struct issue {
	u64 at;
	u64 cgroup;
	u32 pid;
	char comm[16];
};
MAP(HASH, block_io_issued, u64, struct issue, 16384)

TP_BTF(block_rq_issue)
{
	u64 request = ARG(block_rq_issue, rq);
	struct issue issue = {
		.at = bpf_ktime_get_ns(),
		.cgroup = bpf_get_current_cgroup_id(),
		.pid = bpf_get_current_pid_tgid() >> 32,
	};
	bpf_get_current_comm(issue.comm, sizeof(issue.comm));
	if (bpf_map_update_elem(map(block_io_issued), &request, &issue, ANY))
		block_io_lost();
	return 0;
}

/* Class of a request's size: each holds four times more than the one before, from a page of 4 KB on. */
static __always_inline u8 size_class(u32 bytes)
{
	u8 class = 0;
	for (u32 most = 4096; class < 5 && bytes > most; most *= 4)
		class++;
	return class;
}

static __always_inline u32 device_of(struct request *request)
{
	struct gendisk *disk = request->q->disk;
	return disk->major << MINOR_BITS | disk->first_minor;
}

TP_BTF(block_rq_complete)
{
	struct request *request = (void *)ARG(block_rq_complete, rq);
	u64 address = (u64)request, now = bpf_ktime_get_ns();
	u32 bytes = ARG(block_rq_complete, nr_bytes);
	s32 error = ARG(block_rq_complete, error);
	if (bytes < request->__data_len)
		return 0; /* the rest of it is still under way */
	struct issue *issue = bpf_map_lookup_elem(map(block_io_issued), &address);
	if (!issue)
		return 0;
	u64 latency = now - issue->at;
	u64 queued = request->start_time_ns && request->start_time_ns < issue->at ? issue->at - request->start_time_ns : 0;
	struct block_io_key key = {.device = device_of(request), .operation = request->cmd_flags & OPERATION_MASK,
				   .size = size_class(bytes)};
	struct block_io_value *value = block_io_slot(&key);
	if (value) {
		value->count++;
		value->bytes += bytes;
		value->errors += error != 0;
		value->latency_ns += latency;
		value->queued_ns += queued;
		value->latencies[log2_bucket(latency / 1000, 27)]++;
		value->queues[log2_bucket(queued / 1000, 27)]++;
	}
	if (latency >= setting(slow_io_us) * 1000) {
		struct block_io_slow_event *event = block_io_slow_reserve();
		if (event) {
			event->ts = now;
			event->device = key.device;
			event->operation = key.operation;
			event->sector = request->__sector;
			event->bytes = bytes;
			event->error = error;
			event->latency_ns = latency;
			event->queued_ns = queued;
			event->pid = issue->pid;
			event->cgroup = issue->cgroup;
			__builtin_memcpy(event->comm, issue->comm, sizeof(event->comm));
			block_io_slow_submit(event);
		}
	}
	bpf_map_delete_elem(map(block_io_issued), &address);
	return 0;
}
