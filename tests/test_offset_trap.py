"""The trap of struct offsets: with another kernel's a program loads and tells garbage."""

import os

import pytest

from collector import loader
from collector.btf import Btf

TOLD = """
#include "common/task.h"
{structs}
MAP(ARRAY, told, u32, u64, 1)
RAW_TP(sys_enter)
{{
	{read}
	u32 zero = 0;
	u64 value = pid;
	if (bpf_get_current_pid_tgid() >> 32 == {own})
		bpf_map_update_elem(map(told), &zero, &value, ANY);
	return 0;
}}
"""
BY_HEADER = (
    "struct as_in_a_header {{ char before[{offset}]; int pid; }};",
    "int pid = 0; bpf_probe_read_kernel(&pid, 4, &((struct as_in_a_header *)bpf_get_current_task())->pid);",
)
BY_BTF = (
    "KERNEL_STRUCT(task_struct, pid)",
    "int pid = ((struct task_struct *)bpf_get_current_task_btf())->pid;",
)


def pid_as_told(structs: str, read: str) -> int:
    """What a program of this kind says our pid is."""
    text = TOLD.format(structs=structs, read=read, own=os.getpid())
    result = loader.load([loader.Source("trap", text=text)])
    assert not result.failed, result.failed
    loaded = result.loaded["trap"]
    try:
        for _ in range(10):
            os.getppid()
        return int.from_bytes(loaded.maps["told"].lookup(bytes(4)) or b"", "little")
    finally:
        loaded.close()


@pytest.mark.parametrize("moved", [-8, 8, 64])
def test_offsets_of_a_header_load_and_are_silently_wrong(moved):
    """What a header of another kernel does: members lie elsewhere, the read works, the value is another's."""
    there = Btf.read().member("task_struct", "pid").offset
    structs, read = BY_HEADER
    assert pid_as_told(structs.format(offset=there), read) == os.getpid()
    assert pid_as_told(structs.format(offset=there + moved), read) != os.getpid()


def test_offsets_of_the_running_kernel_are_right():
    assert pid_as_told(*BY_BTF) == os.getpid()


def test_installed_headers_are_out_of_reach():
    """Even where a header package is installed, none of its structs can be included."""
    for header in ("linux/sched.h", "net/sock.h", "linux/blkdev.h"):
        text = f'#include "common/probe.h"\n#include <{header}>\nTP_BTF(sched_switch) {{ return 0; }}\n'
        result = loader.load([loader.Source("trap", text=text)])
        result.close()
        assert f"'{header}' file not found" in result.failed["trap"]
