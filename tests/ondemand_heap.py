"""A program that allocates as fast as it can, keeps some of it, and says how much from where."""

import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ondemand import Alone, compiled

SOURCE = r"""
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
static double now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec + t.tv_nsec / 1e9;
}
#define SITE(name)                                                                                     \
	__attribute__((noinline)) void *name(size_t size)                                              \
	{                                                                                              \
		void *made = malloc(size);                                                             \
		memset(made, 1, size);                                                                 \
		asm volatile("" ::"r"(made) : "memory");                                               \
		return made;                                                                           \
	}
SITE(keep_much) SITE(keep_some) SITE(keep_few) SITE(churn)
static void *pool[16];
/* seconds, one of so many is kept, microseconds to sleep after each round of 1000 */
int main(int argc, char **argv)
{
	double end;
	unsigned long keep = atol(argv[2]), pause = atol(argv[3]), rounds = 0, kept[3] = {0};
	unsigned random = 1;
	char line[8];
	read(0, line, 1); /* until it is watched */
	double begun = now();
	for (end = begun + atof(argv[1]); rounds % 1000 || now() < end; rounds++) {
		random = random * 1664525u + 1013904223u;
		size_t size = 16 + (random >> 24);
		unsigned place = (random >> 8) % 16;
		free(pool[place]);
		pool[place] = churn(size);
		if (rounds % keep == 3) {
			unsigned which = (random >> 4) % 10;
			if (which < 6) keep_much(size), kept[0] += size;
			else if (which < 9) keep_some(size), kept[1] += size;
			else keep_few(size * 4), kept[2] += size * 4;
		}
		if (pause && rounds % 1000 == 0) usleep(pause);
	}
	printf("%lu %.6f %lu %lu %lu\n", rounds, now() - begun, kept[0], kept[1], kept[2]);
	fflush(stdout);
	read(0, line, 1); /* until it has been judged */
	return 0;
}
"""
SITES = ("keep_much", "keep_some", "keep_few")


@dataclass
class Outcome:
    """What the program did, and what was said of it."""

    ns_per_round: float
    kept: dict[str, int]
    estimated: dict[str, int]
    errors: dict[str, int]
    windowed: bool

    @property
    def off(self) -> float:
        """The relative error of the sum."""
        return abs(sum(self.estimated.values()) / sum(self.kept.values()) - 1)

    def off_at(self, site: str) -> float:
        """The relative error of a site."""
        return abs(self.estimated.get(site, 0) / self.kept[site] - 1)


def program(directory: Path) -> Path:
    """Compiled."""
    return compiled(directory, "allocating", SOURCE)


class Allocating:
    """The program at work; ends when the block does."""

    def __init__(self, file: Path, seconds: float, keep: int = 40, pause_us: int = 0) -> None:
        arguments = [str(seconds), str(keep), str(pause_us)]
        self.child = subprocess.Popen(
            [file, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __enter__(self) -> "Allocating":
        return self

    def go(self) -> None:
        """Let it begin."""
        assert self.child.stdin
        self.child.stdin.write("x")
        self.child.stdin.flush()

    def done(self) -> tuple[float, dict[str, int]]:
        """(ns a round, bytes kept by each site), once it is through."""
        assert self.child.stdout
        rounds, seconds, *kept = self.child.stdout.readline().split()
        return float(seconds) * 1e9 / int(rounds), dict(zip(SITES, map(int, kept), strict=True))

    def __exit__(self, *_: object) -> None:
        self.child.kill()
        self.child.wait()
        for pipe in (self.child.stdin, self.child.stdout):
            assert pipe
            pipe.close()


def watched(host: Alone, file: Path, seconds: float, *, keep: int = 40, pause_us: int = 0) -> Outcome:
    """Run it under the probe `heap-outstanding`, and judge at its end."""
    with Allocating(file, seconds, keep, pause_us) as running:
        spec: dict[str, Any] = {
            "at": "heap:libc",
            "value": "outstanding",
            "by": ["ustack"],
            "pid": running.child.pid,
        }
        outcome = host.run("heap", spec)
        assert outcome.state == "applied", outcome
        running.go()
        ns_per_round, kept = running.done()
        time.sleep(1.3)  # one more estimate
        heap = host.probes._items["heap"].running
        windowed = bool(heap.windowed)
        rows = host.found("heap")
        host.end("heap")
    rows = [row for row in rows if row["ts"] == max(each["ts"] for each in rows)]
    estimated: dict[str, int] = {}
    errors: dict[str, int] = {}
    for row in rows:
        site = next(
            (each for each in host.stacks[row["user_stack"]].split(";")[::-1] if each in (*SITES, "churn")),
            "",
        )
        estimated[site] = estimated.get(site, 0) + row["sum"]
        errors[site] = errors.get(site, 0) + row["error"]
    host.results.clear()
    return Outcome(ns_per_round, kept, estimated, errors, windowed)
