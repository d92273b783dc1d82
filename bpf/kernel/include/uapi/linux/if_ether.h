// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
#pragma once
#define ETH_HLEN 14 /* bytes before an Ethernet frame's payload */
