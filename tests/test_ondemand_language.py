"""The language of probes: what it takes, what it refuses and how, and that nothing slips into C."""

import re
from collections.abc import Iterator

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ondemand import Alone, alone

from collector import loader
from fleet import probe_choice, probe_dry
from schemas import c_header, probe_c, probe_expression, probe_point
from schemas.desired import Document, Refused
from schemas.errors import UsageError
from schemas.probe_place import Bound, FunctionPlace, TracepointPlace, read_format
from schemas.probe_spec import PROBE, Spec, check, one_line

FORMAT = """name: made_up
format:
\tfield:unsigned short common_type;\toffset:0;\tsize:2;\tsigned:0;
\tfield:int number;\toffset:8;\tsize:4;\tsigned:1;
\tfield:u64 wide;\toffset:16;\tsize:8;\tsigned:0;
\tfield:char comm[16];\toffset:24;\tsize:16;\tsigned:0;
\tfield:__data_loc char[] file;\toffset:40;\tsize:4;\tsigned:0;
\tfield:const void * pointer;\toffset:48;\tsize:8;\tsigned:0;
"""
PLACE = TracepointPlace("made", "up", read_format(FORMAT))
NUMBERS = [
    "number",
    "wide",
    "pointer",
    "pid",
    "tid",
    "cpu",
    "now",
    "0x1f",
    "10ms",
    "4KiB",
    "0",
    "9223372036854775807",
]
TEXTS = ["comm", "file", "args.comm", "str(pointer)", "kstr(wide + 8, 16)"]


def c_of(line: str) -> str:
    return probe_c.generate(check(one_line(line)), Bound(PLACE)).text


def test_one_line_is_the_same_as_the_document() -> None:
    spec = one_line(
        'log2(latency) syscall:openat by comm, f=str(filename) if pid == 7 && comm != "a if b" sample 10'
    )
    assert spec == msgspec.convert(
        {"value": "log2(latency)", "at": "syscall:openat", "by": ["comm", "f=str(filename)"],
         "if": 'pid == 7 && comm != "a if b"', "sample": 10}, Spec,
    )  # fmt: skip
    checked = check(spec)
    assert [each.name for each in checked.keys] == ["comm", "f"]
    assert len(checked.where) == 2


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("syscall:openat", "is not written as"),
        ("count nowhere:x", "points begin with"),
        ("count tracepoint:sched", "tracepoint:sched:sched_process_exec"),
        ("many syscall:openat", "values are count"),
        ("sum(latency) tracepoint:sched:sched_switch", "latency needs a beginning and an end"),
        ("sum(retval) uprobe:libc:malloc", "has no retval"),
        ("count syscall:openat if comm > 3", "takes numbers"),
        ('count syscall:openat if "a" == "b"', "compare a text with a literal"),
        ("count syscall:openat if pid ==", "expected a value at character 7, found the end"),
        ("count syscall:openat if pid == 1 2", "expected an operator"),
        ("count syscall:openat if system(1)", "no function system()"),
        ("count syscall:openat if 5x == 1", "units are ns, us"),
        ("count syscall:openat if pid == 99999999999999999999", "does not fit"),
        ("count uprobe:../../etc/x:y", "without .."),
        ("count uprobe:bin/x:y", "absolute path"),
        ("count software:nothing", "software events are"),
        ("count profile:100000", "at most 1000"),
        ("event syscall:openat", "an event needs fields"),
        ("count syscall:openat by pid, pid", "two keys are called pid"),
        ("count syscall:openat by a=args.a, b=args.b, c=args.c, d=args.d, e=args.e", "at most 4 keys"),
        ("count syscall:openat by 5", "never changes"),
        ("count syscall:openat if ustack == 1", "can only be a key"),
        ("linear(arg0, 0, 1000, 1) uprobe:libc:malloc", "at most 62 buckets"),
        ("count syscall:openat sample 0", "not a probe"),
        ("count syscall:openat by comm by pid", "says `by` twice"),
        ("outstanding heap:libc by ustack", "by pid or cgroup"),
        ("count heap:libc", "outstanding goes with"),
        ("count syscall:openat until syscall:close", "entry and return already"),
        ("count syscall:openat if " + "(" * 300, "nested too deeply"),
        ("count syscall:openat if " + " + ".join(["1"] * 300), "too long or nested"),
    ],
)
def test_mistakes_are_answered_in_one_line(line: str, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        check(one_line(line))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_probe_must_have_a_time_to_live_and_no_unknown_field() -> None:
    document = Document(kind="probe", id="x", revision=1, created=1, spec={"at": "syscall:openat"})
    with pytest.raises(Refused, match="time to live"):
        PROBE.judge(document)
    with pytest.raises(Refused, match="unknown field `code`"):
        PROBE.judge(msgspec.structs.replace(document, expires=2, spec={"at": "syscall:openat", "code": "x"}))


def test_unknown_fields_are_answered_with_those_there_are() -> None:
    with pytest.raises(
        UsageError, match=r"has no `nothing` on this host; it has number, wide, comm, file, pointer"
    ):
        c_of("count tracepoint:made:up by nothing")


@given(st.text(max_size=60), st.text(alphabet="abc_01 ()\"'\\;{}*/<>=!&|+-%,.~^#\n", max_size=60))
@settings(max_examples=300, deadline=None)
def test_any_text_is_parsed_or_refused(anything: str, likely: str) -> None:
    for text in (anything, likely, f"pid == 1 && {likely}", f"str({likely})"):
        for read in (probe_expression.parse, probe_point.parse, one_line):
            try:
                read(text)
            except UsageError as error:
                assert str(error)


@given(
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers()
        | st.text(max_size=8)
        | st.sampled_from(["syscall:openat", "count"]),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["at", "if", "by", "value", "sample", "rate", "x"]), inner, max_size=4
            )
        ),
        max_leaves=8,
    )
)
@settings(max_examples=200, deadline=None)
def test_any_document_is_checked_or_refused(tree: object) -> None:
    try:
        check(tree)
    except UsageError as error:
        assert str(error)


INJECTIONS = ['"; return 0; }', "*/ int x; /*", "#include <x>", "a\\", "%s{to}", "??/", "$(reboot)"]


@pytest.mark.parametrize("text", INJECTIONS)
def test_texts_become_bytes_and_never_c(text: str) -> None:
    quoted = text.replace('"', "'").replace("\\", "/")
    made = c_of(f'count tracepoint:made:up by comm if comm == "{quoted}" || starts_with(file, "{quoted}")')
    assert quoted not in made
    assert all(f"[{at}] ^ {byte})" in made for at, byte in enumerate(quoted.encode()))
    for field in ("at", "until", "cgroup", "source"):
        tree = {"at": "tracepoint:made:up", field: f"tracepoint:{text}"}
        if field == "cgroup":
            assert text not in probe_c.generate(check(tree), Bound(PLACE)).text
        else:
            with pytest.raises(UsageError):
                check(tree)


def expressions() -> st.SearchStrategy[str]:
    """Conditions that are right."""
    numbers = st.recursive(
        st.sampled_from(NUMBERS),
        lambda one: st.builds("({} {} {})".format, one, st.sampled_from([*"+-*/%&|^", "<<", ">>"]), one)
        | st.builds("-{}".format, one) | st.builds("~{}".format, one),
        max_leaves=4,
    )  # fmt: skip
    texts = st.builds('{} {} "{}"'.format, st.sampled_from(TEXTS), st.sampled_from(["==", "!="]),
                      st.text(alphabet="abcXYZ/._-;*{}", max_size=12))  # fmt: skip
    starts = st.builds(
        'starts_with({}, "{}")'.format, st.sampled_from(TEXTS), st.text(alphabet="ab/", max_size=5)
    )
    leaf = st.builds("({}) > 3".format, numbers) | texts | starts

    def more(one: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
        both, either = st.builds("({} && {})".format, one, one), st.builds("({} || {})".format, one, one)
        return both | either | st.builds("!({})".format, one)

    return st.recursive(leaf, more, max_leaves=3)


@given(
    st.lists(
        st.tuples(expressions(), st.sampled_from(["count", "log2(number)", "event"])), min_size=6, max_size=6
    )
)
@settings(max_examples=2, deadline=None, suppress_health_check=list(HealthCheck))
def test_what_is_accepted_passes_compiler_and_verifier(specs: list[tuple[str, str]]) -> None:
    place = TracepointPlace("sched", "sched_process_exec", PLACE.fields)
    sources = []
    for number, (condition, value) in enumerate(specs):
        made = probe_c.generate(
            check({"at": "tracepoint:sched:sched_process_exec", "if": condition, "value": value,
                   "by": ["comm", "file", "sum=number + wide", "str(pointer, 32)"]}), Bound(place),
        )  # fmt: skip
        sources.append(
            loader.Source(
                f"s{number}", text=made.text, header=c_header.generate(made.declaration), attach=False
            )
        )
    result = loader.load(sources)
    try:
        assert not result.failed, {specs[int(name[1:])]: why for name, why in result.failed.items()}
    finally:
        result.close()


def test_arguments_of_functions_are_registers() -> None:
    made = probe_c.generate(
        check(one_line("sum(arg1 * 2) uprobe:libc:calloc by comm")), Bound(FunctionPlace("begin"))
    )
    assert re.search(r"KERNEL_STRUCT\(pt_regs, \w+", made.text)


def test_dry_run_and_choice() -> None:
    choice = probe_choice.choose("slow-open", {"if": "latency > 1s", "sample": 4})
    assert choice.name == "slow-open"
    assert choice.spec["if"] == "latency > 1s"
    assert "0x3b9aca00" in probe_dry.source(check(choice.spec))
    assert probe_choice.choose("count syscall:openat by comm", {}).name == "syscall-openat"
    with pytest.raises(UsageError, match="bpfleet probe library"):
        probe_choice.choose("slow-opn", {})
    with pytest.raises(UsageError, match="which probe"):
        probe_choice.choose("", {})


@pytest.fixture(scope="module")
def host() -> Iterator[Alone]:
    """One on which a good probe runs all the time."""
    with alone() as made:
        assert made.run("good", "count syscall:getppid").state == "applied"
        yield made


@pytest.mark.parametrize(
    ("line", "state", "words"),
    [
        ("count tracepoint:no:such", "failed", "this kernel has no tracepoint no:such"),
        ("count syscall:nosuch", "refused", "no system call nosuch"),
        ("count raw:nosuch", "refused", "no raw tracepoint nosuch"),
        ("count raw:sched_switch by x=nosuch", "refused", "no argument nosuch"),
        ("count uprobe:libc:nosuch", "failed", "has no function nosuch"),
        ("count uprobe:/etc/passwd:main", "failed", "/etc/passwd is no program"),
        ("count uprobe:libnosuch:x", "failed", "no libnosuch on this host"),
        ("count usdt:libstdc++:no:such", "failed", "it has libstdcxx:catch"),
        ("count syscall:openat by nosuch", "refused", "has no `nosuch` on this host; it has"),
        ("count hardware:cycles", "failed", "does not count cycles"),
        ("count kprobe:do_unlinkat", "failed", "no kprobes"),
        ("count fentry:do_unlinkat", "refused", "take kprobe"),
    ],
)
def test_a_host_says_in_plain_words_what_it_has_not(host: Alone, line: str, state: str, words: str) -> None:
    outcome = host.run("bad", line)
    good = host.probes.apply(host.documents)["good"]
    said = [each for each in host.heard("bad") if each["revision"] == host.documents[-1].revision]
    assert outcome.state == state
    assert words in outcome.reason
    assert good.state == "applied"
    assert said[0]["event"] == state
    assert words in said[0]["reason"]
