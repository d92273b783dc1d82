// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* Allocations in the kernel. Pages: each is counted by its order. Slabs: one in SAMPLED_ONE_IN is looked at and
 * stands for as many.
 */
#include "common/gap.h"
#include "common/near.h"

KERNEL_STRUCT(kmem_cache, name, size, object_size)

#define SAMPLED_ONE_IN 64

GAP(slab_alloc_gap)
NEAR(page_alloc)

TP_BTF(mm_page_alloc)
{
	struct page_alloc_key key = {.order = ARG(mm_page_alloc, order)};
	struct page_alloc_value *value = page_alloc_near_slot(&key);
	if (value) {
		value->count++;
		value->failed += !ARG(mm_page_alloc, page);
	}
	return 0;
}

static __always_inline void look(struct slab_alloc_key *key, u64 requested, u64 allocated)
{
	struct slab_alloc_value *value = slab_alloc_slot(key);
	if (!value)
		return;
	value->samples++;
	value->count += SAMPLED_ONE_IN;
	value->requested_bytes += requested * SAMPLED_ONE_IN;
	value->allocated_bytes += allocated * SAMPLED_ONE_IN;
}

TP_BTF(kmalloc)
{
	if (!is_sampled(map(slab_alloc_gap), SAMPLED_ONE_IN))
		return 0;
	struct slab_alloc_key key = {.location = ARG(kmalloc, call_site), .cache = "kmalloc"};
	look(&key, ARG(kmalloc, bytes_req), ARG(kmalloc, bytes_alloc));
	return 0;
}

TP_BTF(kmem_cache_alloc)
{
	if (!is_sampled(map(slab_alloc_gap), SAMPLED_ONE_IN))
		return 0;
	struct kmem_cache *cache = (void *)ARG(kmem_cache_alloc, s);
	struct slab_alloc_key key = {.location = ARG(kmem_cache_alloc, call_site)};
	bpf_probe_read_kernel_str(key.cache, sizeof(key.cache), cache->name);
	look(&key, cache->object_size, cache->size);
	return 0;
}
