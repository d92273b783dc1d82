// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
// Drop sampling and filtering: which rules match (code that collector/filter/emit.py writes, and filter_table.h),
// what becomes of the frame (filter_act.h), samples of what passes (filter_sample.h), then the next program, if there is one.
// Each PIECE is a function of its own; collector/filter/link.py puts them together.

#include "xdp/filter_act.h"
#include "xdp/filter_table.h"

static void (*tail_call)(struct xdp_md *, void *table, u32 at) = (void *)BPF_FUNC_tail_call;

INLINE u64 filter_main(struct xdp_md *ctx, struct filter_scratch *scratch, int following)
{
    const struct filter_config *config = FILTER_CONFIG;
    u64 decided = 0, matched = scratch->summary;

    if (UNLIKELY(config->table))
        matched |= call_table(ctx, scratch);
    if (UNLIKELY(matched))
        decided = call_act(ctx, scratch);
    if (decided == FILTER_DECIDED_DROP)
        return XDP_DROP;
    if (LIKELY(!decided)) {
        scratch->packets++;
        scratch->bytes += (u64)ctx->data_end - (u64)ctx->data;
        if (UNLIKELY(!count_down(&scratch->sampler, config->budget)))
            call_passed(ctx, scratch);
    }
    if (following)
        call_follow(ctx, scratch);
    tail_call(ctx, map(filter_next), 0); // a constant index is a direct jump; where nothing follows, none
    return XDP_PASS;
}

// A frame that no rule decided on, and that may be sampled.
INLINE u64 filter_passed(struct xdp_md *ctx, struct filter_scratch *scratch)
{
    const struct filter_config *config = FILTER_CONFIG;
    u32 weight = sample_now(&scratch->sampler, scratch->packets, config->budget, config->window);

    if (!weight)
        return 0;
    scratch->sample = FILTER_NO_RULE;
    scratch->weight = weight;
    return call_record(ctx, scratch);
}

// The functions, which take the context and this CPU's scratch. What matches stands before `main`, and falls through
// to it: collector/filter/entry.py. The loader asks for an entry
// point for each: a number of 128 bits comes in two registers, as two pointers do, and bcc rewrites what takes two.
#define PIECE(name) INLINE u64 piece_##name(struct xdp_md *ctx, struct filter_scratch *scratch)
#define ENTRY(name)                                                                                            \
    u64 entry_##name(unsigned __int128 both)                                                                   \
    {                                                                                                          \
        return piece_##name((void *)(u64)FIRST_OF(both), (void *)(u64)SECOND_OF(both));                        \
    }
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
#define FIRST_OF(both) (both)
#define SECOND_OF(both) ((both) >> 64)
#else
#define FIRST_OF(both) ((both) >> 64)
#define SECOND_OF(both) (both)
#endif

PIECE(main)
{
    return filter_main(ctx, scratch, 0);
}
PIECE(main_vips) // instead, beside a balancer
{
    return filter_main(ctx, scratch, 1);
}
PIECE(follow)
{
    return scratch ? filter_follow(ctx, scratch) : 0;
}
PIECE(act)
{
    return scratch ? filter_act(ctx, scratch) : 0;
}
PIECE(step)
{
    return scratch ? filter_step(ctx, scratch) : 1;
}
PIECE(record)
{
    return scratch ? filter_record(ctx, scratch) : 0;
}
PIECE(source_sets)
{
    return scratch ? filter_sets(ctx, scratch, 0) : 0;
}
PIECE(destination_sets)
{
    return scratch ? filter_sets(ctx, scratch, 1) : 0;
}
PIECE(established)
{
    return filter_state(ctx);
}
PIECE(established_vips) // instead, beside a balancer
{
    return scratch ? filter_state_vips(ctx, scratch) : 0;
}
PIECE(own)
{
    return filter_own(ctx);
}
PIECE(table)
{
    return scratch ? filter_table(ctx, scratch) : 0;
}
PIECE(passed)
{
    return scratch ? filter_passed(ctx, scratch) : 0;
}
PIECE(fields)
{
    return scratch ? filter_fields_fit(ctx, scratch) : 1;
}
