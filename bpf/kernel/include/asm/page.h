// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* The compiler library asks for this file and needs nothing of it. */
#pragma once
