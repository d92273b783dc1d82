// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* Nothing here depends on a version: what a kernel has is asked of its BTF. */
#pragma once
#define KERNEL_VERSION(major, minor, patch) (((major) << 16) + ((minor) << 8) + (patch))
#define LINUX_VERSION_CODE KERNEL_VERSION(6, 0, 0)
