// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* The compiler is told to include this first. It stands where a kernel's header tree would: only the types that
 * BPF code needs, no struct of any kernel (those come from the running kernel's BTF, see common/probe.h).
 */
#pragma once
#define CONFIG_BPF_SYSCALL 1
#define __always_inline inline __attribute__((always_inline))
#include <linux/types.h>
