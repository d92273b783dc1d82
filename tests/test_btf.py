"""BTF of the running kernel, judged by the kernel itself, and its C projection by a compiler."""

import subprocess
import sys
from pathlib import Path

import pytest

from collector import btf_c, loader
from collector.btf import Btf, Kind, MissingError
from collector.btf_c import Wanted
from schemas.errors import BpfleetError


@pytest.fixture(scope="module")
def btf():
    return Btf.read()


def format_of(category: str, name: str) -> list[str]:
    """The fields of a classic tracepoint."""
    from collector import tracefs

    tracefs.mount()
    lines = (tracefs.TRACEFS / "events" / category / name / "format").read_text().splitlines()
    return [line for line in lines if "field:" in line]


@pytest.mark.parametrize(
    ("category", "name"), [("sched", "sched_switch"), ("skb", "kfree_skb"), ("block", "block_rq_issue")]
)
def test_offsets_agree_with_the_tracepoints_own_format(btf, category, name):
    """The kernel states the layout of a tracepoint's record in tracefs and, as a struct, in BTF."""
    struct = {"block_rq_issue": "trace_event_raw_block_rq"}.get(name, f"trace_event_raw_{name}")
    checked = 0
    for line in format_of(category, name):
        field, offset = (
            line.split(";")[0].split()[-1].partition("[")[0].lstrip("*"),
            int(line.split("offset:")[1].split(";")[0]),
        )
        try:
            member = btf.member(struct, field)
        except MissingError:
            continue  # the common header has other names
        assert member.offset == offset, field
        checked += 1
    assert checked >= 4


def test_nested_and_anonymous_members(btf):
    outer, inner = btf.member("task_struct", "sched_info"), btf.member("sched_info", "run_delay")
    assert btf.member("task_struct", "sched_info.run_delay").offset == outer.offset + inner.offset
    assert btf.member("sock", "__sk_common.skc_dport").offset == btf.member("sock_common", "skc_dport").offset
    assert btf.member("tcp_sock", "inet_conn.icsk_inet.sk").offset == 0
    assert btf.size(btf.member("task_struct", "comm").type) == 16


def test_bit_fields_are_known_as_such(btf):
    assert btf.member("tcp_sock", "repair").bits == 1
    with pytest.raises(MissingError, match="struct tcp_sock: repair is a bit field"):
        btf_c.struct_text(btf, "tcp_sock", [Wanted("repair", False)], set())


def test_enums_by_name_and_by_a_value(btf):
    reasons = btf.enum("skb_drop_reason")
    assert reasons["SKB_CONSUMED"] == 1
    states = btf.enum("TCP_ESTABLISHED")
    assert (states["TCP_ESTABLISHED"], states["TCP_CLOSE"], states["TCP_LISTEN"]) == (1, 7, 10)
    assert btf.enum("REQ_OP_READ")["REQ_OP_WRITE"] == 1
    with pytest.raises(MissingError, match="no enum nothing_like_it"):
        btf.enum("nothing_like_it")


def test_arguments_of_tracepoints(btf):
    assert btf.arguments("sched_switch")[:3] == ["preempt", "prev", "next"]
    assert {"skb", "location", "reason"} <= set(btf.arguments("kfree_skb"))
    assert btf.kind(btf.tracepoint_id("kfree_skb")) is Kind.TYPEDEF
    with pytest.raises(MissingError, match="no raw tracepoint nothing"):
        btf.tracepoint_id("nothing")


def test_what_is_missing_is_named(btf):
    with pytest.raises(MissingError, match="this kernel has no struct nothing"):
        btf.member("nothing", "a")
    with pytest.raises(MissingError, match=r"struct task_struct has no member sched_info\.nothing"):
        btf.member("task_struct", "sched_info.nothing")


def test_no_btf_says_what_to_do(tmp_path):
    with pytest.raises(BpfleetError, match=r"offers no BTF at .*CONFIG_DEBUG_INFO_BTF=y"):
        Btf.read(tmp_path / "vmlinux")
    (tmp_path / "vmlinux").write_bytes(b"no such thing as this" * 3)
    with pytest.raises(BpfleetError, match="is not BTF"):
        Btf.read(tmp_path / "vmlinux")


def test_every_member_of_a_struct_compiles_to_its_offset(btf):
    """All members of big structs, asked for at once: the BPF compiler proves each offset."""
    text = ['#include "common/probe.h"']
    for struct in ("task_struct", "sk_buff", "request", "sock", "cgroup"):
        names = [btf.name(row[0]) for row in btf.rows(btf.struct_id(struct), 3) if row[0]]
        whole = [each for each in names if not btf.member(struct, each).bits]
        assert len(whole) > 10
        text.append(f"KERNEL_STRUCT({struct}, {', '.join(whole)})")
    result = loader.load([loader.Source("all", text="\n".join([*text, "XDP(pass) { return 2; }"]))])
    assert result.failed == {}
    result.close()


def test_optional_members_say_whether_they_are_there(btf):
    text = btf_c.struct_text(btf, "task_struct", [Wanted("pid", True), Wanted("nothing", True)], set())
    assert "#define HAS_task_struct__pid 1" in text
    assert "#define HAS_task_struct__nothing 0" in text


def test_a_parse_is_quick_and_small():
    """In a process of its own, as in the loader's child."""
    code = (
        "import sys; sys.path.append('.')\nimport time\nfrom collector.btf import Btf\n"
        "start = time.perf_counter(); Btf.read().member('task_struct', 'sched_info.run_delay')\n"
        "print(time.perf_counter() - start, open('/proc/self/status').read().split('VmHWM:')[1].split()[0])"
    )
    root = Path(btf_c.__file__).parent.parent
    runs = [
        subprocess.run(
            [sys.executable, "-c", code], cwd=root, check=True, capture_output=True, text=True
        ).stdout.split()
        for _ in range(3)
    ]
    assert min(float(seconds) for seconds, _ in runs) < 0.15
    assert max(int(kilobytes) for _, kilobytes in runs) < 60_000
