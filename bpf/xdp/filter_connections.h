// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
// Connections of this host's own TCP sockets, as a frame that comes in names them.
#pragma once

#include "xdp/filter_structs.h"

MAP(LRU_HASH, filter_connections, struct filter_connection, u64, 65536)
