from __future__ import annotations

import mmap
import subprocess
import sys
import time
from datetime import UTC, datetime
from importlib import metadata

from gptoss_dist.bench.machine import facts, gpu_bytes, process_age_s, resident_bytes


def test_facts_name_versions_date_and_the_command():
    found = facts(["bench", "job.streams=[1,8]", "a b"])
    assert found["command"] == "gptoss bench 'job.streams=[1,8]' 'a b'"
    assert found["versions"]["torch"] == metadata.version("torch")
    assert abs((datetime.now(UTC) - datetime.fromisoformat(found["date"])).total_seconds()) < 60
    assert found["processor"]


def test_age_of_a_process():
    before = time.monotonic()
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(30)"])
    try:
        time.sleep(0.3)
        age = process_age_s(child.pid)
        assert age is not None
        assert 0.25 <= age <= time.monotonic() - before + 0.05
    finally:
        child.kill()
        child.wait()
    mine = process_age_s()
    assert mine is not None
    assert mine > age
    assert process_age_s(2**22 + 1) is None


def test_memory_of_this_process():
    before = resident_bytes()
    kept = mmap.mmap(-1, 40_000_000)  # never what the allocator has lying about
    kept.write(b"x" * len(kept))
    after = resident_bytes()
    assert before is not None
    assert after is not None
    assert 30e6 < after - before < 60e6
    assert len(kept)
    assert gpu_bytes() is None
