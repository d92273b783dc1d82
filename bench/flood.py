"""A probe of 25 columns whose rate can be set: for what a ring, the encoder and the collector can carry.

One event a ``getppid()`` of one process. Its declaration and source are made here, in a directory of their
own, so that no stream of bpfleet's is added by measuring.
"""

import json
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

from collector import loader
from schemas import declare

TIME = {"type": "long", "logicalType": "timestamp-micros"}
BOUND = 2**63 - 1


def _field(name: str, kind: Any, c: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "type": kind, "c.type": c, "doc": name, **more}


def _fixed(name: str) -> dict[str, Any]:
    return {"type": "fixed", "name": f"flood_{name}", "size": 16}


DECLARATION = {
    "type": "record",
    "name": "flood",
    "doc": "An event for a benchmark.",
    "c.from": "ring",
    "fields": [
        _field("ts", TIME, "u64", decode="ktime"),
        _field("source", _fixed("source"), "u8[16]", decode="ip"),
        _field("destination", _fixed("destination"), "u8[16]", decode="ip"),
        _field("source_port", "int", "u16"),
        _field("destination_port", "int", "u16"),
        _field("protocol", "string", "u8", decode="names:icmp,tcp,udp,other"),
        _field("verdict", "string", "u8", decode="names:pass,drop,sample"),
        _field("reason", "string", "u32", decode="enum:skb_drop_reason"),
        _field("place", "string", "u64", decode="ksym"),
        _field("cgroup", "string", "u64", decode="cgroup"),
        _field("comm", "string", "char[16]", decode="text"),
        _field("device", "string", "u32", decode="device"),
        _field("pid", "long", "u32"),
        _field("tid", "long", "u32"),
        _field("uid", "long", "u32"),
        _field("length", "long", "u32"),
        _field("mark", "long", "u32"),
        _field("hash", "long", "u32"),
        _field("queue", "int", "u16"),
        _field("ttl", "int", "u8"),
        _field("flags", "int", "u8"),
        _field("number", "long", "u64", **{"c.bound": BOUND}),
        _field("wait_ns", "long", "u64", **{"c.bound": BOUND}),
        _field("window", "long", "u32"),
        _field("cpu", "int", "u16"),
    ],
}
SOURCE = """// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
#include "common/task.h"

MAP(PERCPU_ARRAY, flood_number, u32, u64, 1)

TP_BTF(sys_enter)
{
	u32 zero = 0;
	u64 who = bpf_get_current_pid_tgid();
	if (who >> 32 != PROCESS || ctx[1] != GETPPID)
		return 0;
	u64 *number = bpf_map_lookup_elem(map(flood_number), &zero);
	struct flood_event *event = flood_reserve();
	if (!event || !number) {
		if (event)
			bpf_ringbuf_discard(event, 0);
		return 0;
	}
	u32 chance = bpf_get_prandom_u32();
	__builtin_memset(event, 0, sizeof(*event));
	event->ts = bpf_ktime_get_ns();
	event->source[10] = event->source[11] = event->destination[10] = event->destination[11] = 0xff;
	event->source[12] = event->destination[12] = 10;
	event->source[15] = chance;
	event->source[14] = chance >> 12 & 3;
	event->destination[15] = chance >> 8 & 7;
	event->source_port = 32768 + (chance & 1023);
	event->destination_port = 443;
	event->protocol = 1 + (chance >> 4 & 1);
	event->verdict = chance % 3;
	event->reason = 2 + chance % 20;
	event->place = (u64)(chance & 7) * 4096;
	event->cgroup = bpf_get_current_cgroup_id();
	bpf_get_current_comm(event->comm, sizeof(event->comm));
	event->pid = who >> 32;
	event->tid = who;
	event->length = 64 + (chance & 255);
	event->hash = chance & 0xffff;
	event->ttl = 64;
	event->number = (*number)++;
	event->wait_ns = chance & 4095;
	event->window = 65535;
	event->cpu = bpf_get_smp_processor_id();
	flood_submit(event);
	return 0;
}
"""
GENERATOR = """
import os, sys, time
rate, seconds = float(sys.argv[1]), float(sys.argv[2])
sys.stdin.readline()
call, begun, made = os.getppid, time.monotonic(), 0
while (passed := time.monotonic() - begun) < seconds:
    for _ in range(int(rate * passed) - made):
        call()
    made = max(made, int(rate * passed))
    time.sleep(0.001)
print(made)
"""
COLLECT = """
import sys
from pathlib import Path
from collector import loader
from schemas import declare
loader.ROOT = place = Path(sys.argv.pop(1))
for each in (declare.load, declare.streams):
    each.__defaults__ = (place,)
from fleet.cli import main
main()
"""


def stream() -> declare.Stream:
    """The stream, for encoding alone."""
    return declare.parse("flood", DECLARATION).streams[0]


def generator(rate: float, seconds: float) -> "subprocess.Popen[str]":
    """The process that makes events; it begins at a line on its input and prints how many it made."""
    command = [sys.executable, "-S", "-c", GENERATOR, str(rate), str(seconds)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def directory(place: Path, process: int) -> Path:
    """Declarations and sources of a collector that runs the flood and nothing else."""
    for file in [*loader.ROOT.iterdir(), *declare.DIRECTORY.glob("*.avsc")]:
        (place / file.name).symlink_to(file)
    getppid = {"x86_64": 110}.get(platform.machine(), 173)
    (place / "flood.avsc").write_text(json.dumps(DECLARATION))
    (place / "flood.bpf.c").write_text(f"#define PROCESS {process}\n#define GETPPID {getppid}\n{SOURCE}")
    return place
