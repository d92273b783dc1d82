"""The loader: everything declared loads, one failure touches no other, and each says what is wrong."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from probing import PROBES

from collector import bpf_sys, loader, tracefs
from collector.bpf_map import Map, MapType
from collector.loader import Source
from schemas.errors import BpfleetError

GOOD = '#include "common/probe.h"\nTP_BTF(sched_process_exit) { return 0; }\n'
PASS = """#include "common/probe.h"
MAP(HASH, seen, u32, u64, 16)
XDP(pass)
{
	u32 k = 7;
	u64 v = 9;
	bpf_map_update_elem(map(seen), &k, &v, ANY);
	return 2;
}
"""
XDP_PASS = 2


@pytest.fixture
def load():
    """``loader.load`` whose results are closed afterwards."""
    results = []

    def run(*sources, **how):
        results.append(loader.load(sources, **how))
        return results[-1]

    yield run
    for each in results:
        each.close()


def failure(load, text: str) -> str:
    """Why a source does not load; one beside it does."""
    result = load(Source("bad", text=text), Source("good", text=GOOD))
    assert list(result.loaded) == ["good"], result.failed
    assert "\n" not in result.failed["bad"]
    return result.failed["bad"]


def kernel_probes() -> list:
    return [probe for name, probe in PROBES.items() if (loader.ROOT / f"{name}.bpf.c").exists()]


def test_all_declared_probes_load_and_attach(load):
    probes = kernel_probes()
    result = load(*(loader.probe_source(each) for each in probes), enums=loader.kernel_enums(probes))
    assert result.failed == {}
    assert (
        set(result.loaded)
        == {each.name for each in probes}
        >= {
            "runq_latency",
            "block_io",
            "tcp_flow",
            "packet_drop",
        }
    )
    for each in result.loaded.values():
        kept = [
            program for program in each.programs if program.kind != "perf_event"
        ]  # those their owner attaches
        assert all(program.link_fd is not None for program in kept)
        assert f"{each.name}_counts" in each.maps
    assert result.enums["skb_drop_reason"][3] == "NO_SOCKET"
    assert result.enums["REQ_OP_READ"][0] == "READ"
    assert result.enums["TCP_ESTABLISHED"][1] == "ESTABLISHED"


def descriptors() -> list[str]:
    return sorted(each.name for each in Path("/proc/self/fd").iterdir())


def test_closing_detaches_and_leaves_nothing(load):
    files = descriptors()
    result = load(Source("good", text=GOOD), Source("pass", text=PASS))
    ids = {program.id for each in result.loaded.values() for program in each.programs}
    assert ids <= set(bpf_sys.prog_ids())
    result.close()
    result.close()
    end = time.monotonic() + 5  # the kernel frees a program a little after its last descriptor
    while ids & set(bpf_sys.prog_ids()) and time.monotonic() < end:
        time.sleep(0.01)
    assert not ids & set(bpf_sys.prog_ids())
    assert descriptors() == files


def test_the_collector_never_holds_the_compiler(load):
    load(loader.probe_source(PROBES["runq_latency"]))
    libraries = Path("/proc/self/maps").read_text()
    assert "libbcc" not in libraries
    assert "LLVM" not in libraries
    assert "bcc" not in sys.modules


def test_a_source_that_is_only_loaded_runs_on_demand(load):
    loaded = load(Source("pass", text=PASS, attach=False)).loaded["pass"]
    (program,) = loaded.programs
    assert (program.hook, program.link_fd) == ("xdp:pass", None)
    assert bpf_sys.prog_test_run(program.fd, bytes(64)).retval == XDP_PASS
    seen = loaded.maps["seen"]
    assert (seen.type, seen.key_size, seen.value_size, seen.max_entries) == (MapType.HASH, 4, 8, 16)
    assert seen.lookup((7).to_bytes(4, "little")) == (9).to_bytes(8, "little")


def test_sizes_settings_and_given_maps(load):
    text = PASS + "SETTING(verdict, 2)\nXDP(other) { return setting(verdict); }\n"
    ours = Map.create(MapType.HASH, 4, 8, 5, "ours")
    loaded = load(Source("a", text=text, given={"seen": ours}, settings={"verdict": 1})).loaded["a"]
    bpf_sys.prog_test_run(loaded.program("pass").fd, bytes(64))
    assert ours.read()[2] == 1
    other = loaded.program("other").fd
    assert bpf_sys.prog_test_run(other, bytes(64)).retval == 1
    loaded.set("verdict", 3)
    assert bpf_sys.prog_test_run(other, bytes(64)).retval == 3
    with pytest.raises(BpfleetError, match="a has no setting depth; it has: verdict"):
        loaded.set("depth", 1)
    assert load(Source("b", text=PASS, sizes={"seen": 99})).loaded["b"].maps["seen"].max_entries == 99
    ours.close()


def test_pinned_maps_are_found_again(load):
    tracefs.mount()
    place = tracefs.BPFFS / f"bpfleet-test-loader-{os.getpid()}"
    pins = {"seen": str(place)}
    try:
        first = load(Source("a", text=PASS, pins=pins)).loaded["a"]
        bpf_sys.prog_test_run(first.programs[0].fd, bytes(64))
        number = first.maps["seen"].id
        first.close()
        again = load(Source("a", text=PASS, pins=pins)).loaded["a"].maps["seen"]
        assert (again.id, again.read()[2]) == (number, 1)
        other = load(
            Source("a", text=PASS.replace("u64 v", "u32 v").replace("u64, 16", "u32, 16"), pins=pins)
        )
        assert "holds another kind of map than seen; remove the pin" in other.failed["a"]
    finally:
        place.unlink(missing_ok=True)


def test_a_compile_error_names_file_and_line(load, tmp_path):
    file = tmp_path / "broken.bpf.c"
    file.write_text('#include "common/probe.h"\n\nTP_BTF(sched_switch)\n{\n\treturn nothing;\n}\n')
    result = load(Source("broken", file), Source("good", text=GOOD))
    assert result.failed["broken"].startswith(f"{file}:5:9: error: use of undeclared identifier 'nothing'")
    assert list(result.loaded) == ["good"]


def test_what_kills_the_compiler_is_that_sources_failure_alone(load):
    text = '#include "common/probe.h"\nTP_BTF(sched_switch) { s64 a = (s64)ctx[1]; return a / 3; }\n'
    why = failure(load, text)
    assert why.startswith("the compiler gave up: ")
    assert "division" in why


XDP = "XDP(x) { return 2; }"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("TP_BTF(no_point) { return 0; }", "this kernel has no raw tracepoint no_point"),
        ("TRACEPOINT(sched, no_point) { return 0; }", "this kernel has no tracepoint sched:no_point"),
        ("KERNEL_STRUCT(no_struct, a)\n" + XDP, "this kernel has no struct no_struct"),
        ("KERNEL_STRUCT(task_struct, no)\n" + XDP, "this kernel's struct task_struct has no member no"),
        ("TP_BTF(kfree_skb) { return ARG(kfree_skb, no); }", "tracepoint kfree_skb has no argument no"),
        ("KERNEL_ENUM(sock_flags, NOT_ONE)\n" + XDP, "this kernel's enum sock_flags has no NOT_ONE"),
        ("int nothing;", "the source has no program"),
        ("XDP(x) { return *(char *)(long)ctx->data; }", "the verifier refused program x: "),
        ("MAP(HASH, m, u32, u32, 0)\n" + XDP, "cannot create map m: invalid argument"),
    ],
)
def test_every_reason_is_one_plain_line(load, text, why):
    assert why in failure(load, '#include "common/probe.h"\n' + text)


def test_a_missing_file_is_named(load):
    why = load(Source("gone", Path("/no/such.bpf.c"))).failed["gone"]
    assert why == "cannot read /no/such.bpf.c: no such file or directory"


def test_offsets_of_other_headers_are_refused(load):
    """The trap: structs as installed headers have them, while another kernel runs."""
    included = failure(
        load, '#include "common/task.h"\n#include <linux/sched.h>\nTP_BTF(sched_switch) { return 0; }\n'
    )
    assert "'linux/sched.h' file not found" in included
    restated = "struct task_struct { long state; void *stack; int pid; };\n"
    twice = failure(load, '#include "common/task.h"\n' + restated + "TP_BTF(sched_switch) { return 0; }\n")
    assert "redefinition of 'task_struct'" in twice
    guessed = """#include "common/probe.h"
struct task_as_of_another_kernel { char before[%d]; u64 run_delay; };
TP_BTF(sched_switch)
{
	struct task_as_of_another_kernel *next = (void *)ARG(sched_switch, next);
	return next->run_delay;
}
"""
    assert "refused program sched_switch" in failure(load, guessed % pid_offset())
    assert "refused program sched_switch" in failure(load, guessed % 100_000)


def pid_offset() -> int:
    """Where the running kernel has the 4 bytes of a pid: no 8 bytes can be read there."""
    from collector.btf import Btf

    return Btf.read().member("task_struct", "pid").offset


def test_without_the_compiler_the_package_is_named():
    with pytest.raises(BpfleetError, match="install the package python3-bpfcc"):
        loader.load([Source("good", text=GOOD)], python=sys.executable)


def test_without_a_python_the_package_is_named():
    with pytest.raises(BpfleetError, match=r"cannot run /no/python: .*install python3 and python3-bpfcc"):
        loader.load([Source("good", text=GOOD)], python="/no/python")


def test_it_works_where_it_is_installed(tmp_path):
    """A copy of the packages elsewhere, as in an environment's site-packages, from another directory."""
    for each in ("bpf", "collector", "schemas"):
        shutil.copytree(loader.ROOT.parent / each, tmp_path / each)
    code = (
        "from collector import loader; from schemas import declare\n"
        "result = loader.load([loader.probe_source(declare.load()['runq_latency'])])\n"
        "print(loader.__file__, sorted(result.loaded), result.failed)"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        cwd="/",
        env={"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert ran.stdout.split(" ", 1) == [f"{tmp_path}/collector/loader.py", "['runq_latency'] {}\n"], (
        ran.stderr
    )


def test_the_capabilities_that_the_documentation_names_suffice():
    """Root cut down to CAP_BPF and CAP_PERFMON loads and attaches every declared probe."""
    code = (
        "from collector import loader; from schemas import declare\n"
        f"names = {sorted(each.name for each in kernel_probes())}\n"
        "result = loader.load([loader.probe_source(declare.load()[name]) for name in names])\n"
        "print(sorted(result.loaded) == names, result.failed)"
    )
    few = "-all,+bpf,+perfmon"
    ran = subprocess.run(
        ["setpriv", "--bounding-set", few, "--inh-caps", few, sys.executable, "-c", code],
        check=True, capture_output=True, text=True, cwd=loader.ROOT.parent,
    )  # fmt: skip
    assert ran.stdout == "True {}\n", ran.stderr


def test_every_kind_of_program_loads(load):
    kinds = {
        "TP_BTF(sched_process_exit)": "tp_btf:sched_process_exit",
        "RAW_TP(sched_process_exit)": "raw_tp:sched_process_exit",
        "TRACEPOINT(sched, sched_process_exit)": "tracepoint:sched:sched_process_exit",
        "PERF_EVENT(clock)": "perf_event:clock",
        "UPROBE(function)": "uprobe:function",
        "XDP(packet)": "xdp:packet",
        "TC(packet)": "tc:packet",
    }
    tracefs.mount()
    text = '#include "common/probe.h"\n' + "".join(f"{each} {{ return 0; }}\n" for each in kinds)
    result = load(Source("kinds", text=text))
    assert result.failed == {}
    programs = result.loaded["kinds"].programs
    assert [each.hook for each in programs] == list(kinds.values())
    attached = {each.kind for each in programs if each.link_fd is not None}
    assert attached == {"tp_btf", "raw_tp", "tracepoint"}
    before = {each.kind: bpf_sys.prog_info(each.fd).run_count for each in programs}
    stats = bpf_sys.enable_stats()
    subprocess.run(["true"], check=True)
    after = {each.kind: bpf_sys.prog_info(each.fd).run_count for each in programs}
    os.close(stats)
    assert {kind for kind in after if after[kind] > before[kind]} == attached
