"""Programs whose time is known, for the profiles' tests, compiled here."""

import subprocess
from pathlib import Path

# 70 : 30 in two functions, which call a third; C++ and Rust the same in their own manglings. Who comes next,
# and for how long, is by lot: a beat would run with or against that of the clock which samples it.
C = r"""
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
__attribute__((noinline)) unsigned long burn(unsigned long n)
{
	volatile unsigned long x = 1;
	for (unsigned long i = 0; i < n; i++) x = x * 6364136223846793005UL + i;
	return x;
}
__attribute__((noinline)) unsigned long seventy(void)
{ unsigned long s = burn(5000 + rand() % 40000); __asm__ volatile("" : "+r"(s)); return s; }
__attribute__((noinline)) unsigned long thirty(void)
{ unsigned long s = burn(5000 + rand() % 40000); __asm__ volatile("" : "+r"(s)); return s; }
int main(int count, char **words)
{
	struct timespec now, end;
	clock_gettime(CLOCK_MONOTONIC, &end);
	end.tv_sec += atoi(words[1]);
	do { rand() % 10 < 7 ? seventy() : thirty(); clock_gettime(CLOCK_MONOTONIC, &now); }
	while (now.tv_sec < end.tv_sec || (now.tv_sec == end.tv_sec && now.tv_nsec < end.tv_nsec));
	return 0;
}
"""
CPP = r"""
#include <cstdlib>
#include <ctime>
#include <vector>
namespace shop {
template <typename T> struct Till {
	__attribute__((noinline)) unsigned long count(const std::vector<T> &coins)
	{
		volatile unsigned long x = 1;
		for (int i = 0; i < 20000; i++) x = x * 31 + coins.size();
		return x;
	}
};
}
int main(int, char **words)
{
	time_t end = time(nullptr) + atoi(words[1]);
	std::vector<int> coins(3); shop::Till<int> till; unsigned long sum = 0;
	while (time(nullptr) < end) sum += till.count(coins);
	return sum == 42;
}
"""
RUST = r"""
mod shop { pub trait Count { fn count(&self) -> u64; }
  impl Count for [u8; 4] { #[inline(never)] fn count(&self) -> u64 {
    let mut x = 1u64;
    for i in 0..20000 { x = x.wrapping_mul(31).wrapping_add(i); std::hint::black_box(&x); }
    x } } }
use shop::Count;
fn main() {
  let seconds: u64 = std::env::args().nth(1).unwrap().parse().unwrap();
  let begun = std::time::Instant::now(); let mut sum = 0u64;
  while begun.elapsed().as_secs() < seconds {
    sum = sum.wrapping_add(std::hint::black_box([1u8, 2, 3, 4]).count());
  }
  if sum == 42 { println!("{}", sum); }
}
"""
# Code in anonymous memory, as a JIT makes it, told in a perf map: a frame, a counted loop, return.
JIT = r"""
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>
static const unsigned char code[] = {0x55, 0x48, 0x89, 0xe5, 0xb9, 0x40, 0x42, 0x0f, 0x00,
                                     0xff, 0xc9, 0x75, 0xfc, 0x5d, 0xc3};
int main(int count, char **words)
{
	void *place = mmap(0, 4096, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	memcpy(place, code, sizeof(code));
	char name[64];
	sprintf(name, "/tmp/perf-%d.map", getpid());
	FILE *map = fopen(name, "w");
	fprintf(map, "garbage\n%lx %lx js:hot;path square.js:3\n", (long)place, (long)sizeof(code));
	fclose(map);
	time_t end = time(0) + atoi(words[1]);
	while (time(0) < end) ((void (*)(void))place)();
	unlink(name);
	return 0;
}
"""


def compile_all(directory: Path) -> dict[str, Path]:
    """name → program; each takes the seconds it runs. `stripped` is the C program without symbols."""
    made = {}
    for name, text, command in (
        ("known_c", C, ["gcc", "-O1", "-fno-omit-frame-pointer", "-x", "c"]),
        ("known_cpp", CPP, ["g++", "-O1", "-fno-omit-frame-pointer", "-x", "c++"]),
        ("known_rust", RUST, ["rustc", "-O", "-C", "force-frame-pointers=yes"]),
        ("known_jit", JIT, ["gcc", "-O1", "-fno-omit-frame-pointer", "-x", "c"]),
    ):
        source = directory / f"{name}.rs"
        source.write_text(text)
        made[name] = directory / name
        subprocess.run([*command, str(source), "-o", str(made[name])], check=True, capture_output=True)
    made["known_bare"] = directory / "known_bare"
    subprocess.run(["strip", "-s", "-o", str(made["known_bare"]), str(made["known_c"])], check=True)
    return made


def ten_functions(directory: Path) -> Path:
    """A program whose function ``work_N``, N of 1 … 10, takes N/55 of its time; its word: seconds to run."""
    workers = "\n".join(
        f"__attribute__((noinline)) void work_{n}(void)\n"
        f"{{ volatile unsigned long x = {n}; for (int i = 0; i < {n} * 4000; i++) x = x * 31 + i; }}"
        for n in range(1, 11)
    )
    calls = " ".join(f"work_{n}();" for n in range(1, 11))
    source, program = directory / "ten.c", directory / "ten_functions"
    source.write_text(
        f"#include <stdlib.h>\n#include <time.h>\n{workers}\n"
        f"int main(int count, char **words)\n{{ time_t end = time(0) + atoi(words[1]);\n"
        f"while (time(0) < end) {{ {calls} }} return 0; }}\n"
    )
    subprocess.run(["gcc", "-O1", "-fno-omit-frame-pointer", str(source), "-o", str(program)], check=True)
    return program
