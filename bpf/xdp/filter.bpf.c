// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
// Drop sampling and filtering: which rules match (a function that collector/filter/emit.py writes, and filter_table.h),
// what becomes of the frame (filter_act.h), samples of what passes (filter_sample.h), then the next program, if there is one.
// Each PIECE is a function of its own; collector/filter/link.py puts them together.

#include "xdp/filter_act.h"
#include "xdp/filter_table.h"

static void (*tail_call)(struct xdp_md *, void *table, u32 at) = (void *)BPF_FUNC_tail_call;

INLINE u64 filter_main(struct xdp_md *ctx)
{
    u32 zero = 0, shift;
    struct filter_scratch *scratch = own_scratch();
    struct filter_config *config = bpf_map_lookup_elem(map(filter_config), &zero);
    u64 decided = 0, matched;

    if (!scratch || !config)
        return XDP_PASS;
    scratch->sets_known = 0;
    matched = call_match(ctx, scratch);
    if (UNLIKELY(config->table))
        matched |= call_table(ctx);
    if (UNLIKELY(matched))
        decided = call_act(ctx);
    if (decided == FILTER_DECIDED_DROP)
        return XDP_DROP;
    if (LIKELY(!decided)) {
        scratch->packets++;
        scratch->bytes += ctx->data_end - ctx->data;
        shift = sample_now(&scratch->sampler, scratch->packets, config->budget, config->window);
        if (UNLIKELY(shift)) {
            scratch->sample = FILTER_NO_RULE | (shift - 1) << 24;
            call_record(ctx);
        }
    }
    tail_call(ctx, map(filter_next), 0); // a constant index is a direct jump; where nothing follows, none
    return XDP_PASS;
}

// The functions; the loader adds an entry point for each, which takes the context and nothing else.
#define PIECE(name) INLINE u64 piece_##name(struct xdp_md *ctx)

PIECE(main)
{
    return filter_main(ctx);
}
PIECE(act)
{
    struct filter_scratch *scratch = own_scratch();

    return scratch ? filter_act(ctx, scratch) : 0;
}
PIECE(step)
{
    struct filter_scratch *scratch = own_scratch();

    return scratch ? filter_step(ctx, scratch) : 1;
}
PIECE(record)
{
    struct filter_scratch *scratch = own_scratch();

    return scratch ? filter_record(ctx, scratch) : 0;
}
PIECE(source_sets)
{
    struct filter_scratch *scratch = own_scratch();

    return scratch ? filter_sets(ctx, scratch, 0) : 0;
}
PIECE(destination_sets)
{
    struct filter_scratch *scratch = own_scratch();

    return scratch ? filter_sets(ctx, scratch, 1) : 0;
}
PIECE(established)
{
    return filter_state(ctx);
}
PIECE(table)
{
    struct filter_scratch *scratch = own_scratch();

    return scratch ? filter_table(ctx, scratch) : 0;
}
PIECE(fields)
{
    struct filter_scratch *scratch = own_scratch();

    return scratch ? filter_fields_fit(ctx, scratch) : 1;
}
