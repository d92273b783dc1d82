// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* The page cache. A read that needs several rounds tells each time of all that is left of it: only its first round
 * counts. What is brought in is counted where a page enters the cache, for reads, writes and faults alike; pages that
 * writes made are told apart by their getting dirty.
 */
#include "common/near.h"
#include "common/task.h"

KERNEL_STRUCT(task_struct, pid)
KERNEL_STRUCT(folio, flags, ?_nr_pages, ?_folio_nr_pages)
KERNEL_ENUM(pageflags, PG_head)
NEAR(page_cache)

#define PLACES 16384 /* of threads that read; 512 kB; a power of two */

struct reading {
	u64 task;
	u64 mapping;
	u64 index;
	u64 last;
};
MAP(ARRAY, page_cache_reading, u32, struct reading, PLACES)

static __always_inline struct page_cache_value *of_current(struct task_struct *task)
{
	struct page_cache_key key = {.cgroup = cgroup_of(task)};
	return page_cache_near_slot(&key);
}

TP_BTF(mm_filemap_get_pages)
{
	struct task_struct *task = (void *)bpf_get_current_task_btf();
	struct reading now = {
		.task = (u64)task,
		.mapping = ARG(mm_filemap_get_pages, mapping),
		.index = ARG(mm_filemap_get_pages, index),
		.last = ARG(mm_filemap_get_pages, last_index),
	};
	u32 place = (u32)task->pid % PLACES;
	struct reading *before = bpf_map_lookup_elem(map(page_cache_reading), &place);
	if (!before)
		return 0;
	bool goes_on = before->task == now.task && before->mapping == now.mapping && before->last == now.last &&
		       before->index < now.index;
	*before = now;
	struct page_cache_value *value = goes_on ? NULL : of_current(task);
	if (value)
		value->read_pages += now.last - now.index + 1;
	return 0;
}

TP_BTF(mm_filemap_fault)
{
	struct page_cache_value *value = of_current((void *)bpf_get_current_task_btf());
	if (value)
		value->fault_pages++;
	return 0;
}

static __always_inline u64 pages_of(struct folio *folio)
{
	if (!(*(u64 *)&folio->flags >> PG_head & 1))
		return 1;
#if HAS(folio, _nr_pages)
	return folio->_nr_pages;
#elif HAS(folio, _folio_nr_pages)
	return folio->_folio_nr_pages;
#else
	return 1;
#endif
}

TP_BTF(mm_filemap_add_to_page_cache)
{
	struct page_cache_value *value = of_current((void *)bpf_get_current_task_btf());
	if (value)
		value->added_pages += pages_of((void *)ARG(mm_filemap_add_to_page_cache, folio));
	return 0;
}

TP_BTF(writeback_dirty_folio)
{
	struct page_cache_value *value = of_current((void *)bpf_get_current_task_btf());
	if (value)
		value->dirtied_pages += pages_of((void *)ARG(writeback_dirty_folio, folio));
	return 0;
}
