"""Files that change are heard of at once; where the kernel watches for nobody, they are looked for."""

import threading
import time
from pathlib import Path

import pytest

from collector import watch
from collector.watch import Watch


def waited(made: Watch, seconds: float) -> float:
    begun = time.monotonic()
    made.wait(seconds)
    return time.monotonic() - begun


@pytest.mark.parametrize("change", ["made", "moved", "written", "removed"])
def test_a_change_ends_the_wait_and_is_heard_once(tmp_path: Path, change: str) -> None:
    place = tmp_path / "not" / "there"
    made = Watch(place)
    file, other = place / "state.json", tmp_path / "other"
    if change in ("written", "removed"):
        file.write_text("x")
        waited(made, 5)
    other.write_text("y")

    def act() -> None:
        time.sleep(0.1)
        if change == "moved":
            other.rename(file)
        elif change == "removed":
            file.unlink()
        else:
            with file.open("a") as out:
                out.write("z")

    thread = threading.Thread(target=act)
    thread.start()
    assert waited(made, 20) < 15
    thread.join()
    while waited(made, 0.05) < 0.04:  # a file that is made and written is two changes
        pass
    made.close()


def test_a_thread_can_wake_it_and_a_wake_before_counts(tmp_path: Path) -> None:
    made = Watch(tmp_path)
    made.wake()
    assert waited(made, 20) < 15
    assert waited(made, 0.05) >= 0.04
    made.close()


def test_where_nothing_can_be_watched_it_looks_more_often(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "LOOK_S", 0.05)
    (tmp_path / "file").write_text("")
    made = Watch(tmp_path / "file" / "below")  # no directory, and none can be made
    assert made.fd < 0 and waited(made, 20) < 15
    made.close()
