"""`gptoss batch` on real ranks over the toy: what was killed on the way goes on, and every id comes out once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from batch_work import answers_in, expected, write_records
from test_failures import Run, is_running

pytestmark = pytest.mark.multi

WORDS = ["batch", "model=tiny", "cluster.device=cpu", "generation=greedy", "generation.max_new_tokens=12"]
ENGINE = ["backend=engine", "kernels=reference", "engine.max_running=4", "engine.cache_tokens=4096"]
PROGRAM = [sys.executable, "-m", "gptoss_dist"]
COUNT = 40
WORKER = str(Path(__file__).parents[1] / "batch_work.py")


def lines_in(output: Path) -> int:
    return sum(part.read_bytes().count(b"\n") for part in Path(f"{output}.parts").glob("part-*"))


def wait_for_lines(run: Run, output: Path, count: int) -> dict[int, int]:
    deadline = time.monotonic() + 120
    while lines_in(output) < count:
        assert run.process.poll() is None, run.err
        assert time.monotonic() < deadline, run.err
        time.sleep(0.02)
    return run.ranks()


@pytest.fixture
def words(random_toy: Path, tmp_path: Path) -> list[str]:
    given = write_records(tmp_path / "in.jsonl", COUNT)
    files = [f"model.path={random_toy}", f"job.input={given}", f"job.output={tmp_path / 'out.jsonl'}"]
    return [*WORDS, *ENGINE, *files, "plan=dp_tp", "plan.dp=2", "plan.tp=1", "job.share=4"]


def test_a_killed_rank_and_a_stopped_run_lose_and_repeat_nothing(words: list[str], tmp_path: Path):
    output = tmp_path / "out.jsonl"
    for signum, status in ((signal.SIGKILL, 1), (signal.SIGTERM, 143)):
        before = lines_in(output)
        run = Run([*PROGRAM, *words, "job.grace_s=0.5"], tmp_path)
        try:
            ranks = wait_for_lines(run, output, before + 3)
            assert sorted(ranks) == [0, 1]
            os.kill(ranks[1], signum) if signum == signal.SIGKILL else run.process.send_signal(signum)
            assert run.status() == status, run.err
        finally:
            run.close()
        assert not any(is_running(pid) for pid in ranks.values())
        assert "Traceback" not in run.err
        assert not output.exists()
    done = subprocess.run([*PROGRAM, *words, "--json"], capture_output=True, text=True, check=False, timeout=200)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["complete"]
    assert said["records_in"] == said["records_out"] == COUNT
    assert 0 < said["records"] <= COUNT - 6
    assert "records have their answer already" in done.stderr
    assert [*answers_in(output)] == [f"r{number}" for number in range(COUNT)]
    manifest = json.loads(Path(f"{output}.manifest.json").read_text())
    assert manifest["plan"] == "dp_tp, dp=2, tp=1"
    assert len(manifest["workers"]) == 3
    assert not Path(f"{output}.parts").exists()
    again = subprocess.run([*PROGRAM, *words, "--json"], capture_output=True, text=True, check=False, timeout=200)
    assert again.returncode == 0, again.stderr
    content = json.loads(again.stdout)
    assert (content["complete"], content["records"]) == (True, COUNT)
    assert "out.jsonl is complete already" in again.stderr
    assert "loaded" not in again.stderr


def test_the_toys_answers_from_stdin_and_the_summary(tmp_path: Path):
    output = tmp_path / "out.jsonl"
    prompts = ["What is the capital of France?", "What is 2 + 2?"]
    typed = "".join(json.dumps({"prompt": prompt, "max_tokens": 60}) + "\n" for prompt in prompts)
    command = [*PROGRAM, *WORDS, "job.input=-", f"job.output={output}"]
    done = subprocess.run(command, input=typed, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert answers_in(output) == {"1": "The capital of France is Paris.", "2": "2 + 2 = 4."}
    assert "answered     2 of 2 records" in done.stdout
    assert "2 of them have no id" in done.stderr
    assert sorted(file.name for file in tmp_path.iterdir()) == ["out.jsonl", "out.jsonl.manifest.json"]
    again = subprocess.run(command, input=typed, capture_output=True, text=True, check=False, timeout=120)
    assert again.returncode == 0, again.stderr
    assert "out.jsonl is complete already" in again.stderr
    assert "loaded" not in again.stderr
    assert "answered     2 of 2 records" in again.stdout
    assert sorted(file.name for file in tmp_path.iterdir()) == ["out.jsonl", "out.jsonl.manifest.json"]


WEATHER = '''
import json

def get_weather(city: str) -> str:
    """Get the current weather of a city.

    Args:
        city: The city, such as Paris
    """
    return json.dumps({"sky": "sunny", "celsius": 20}, separators=(",", ":"))
'''


def test_the_toy_calls_a_function_and_answers_from_its_result(tmp_path: Path):
    (tmp_path / "tools.py").write_text(WEATHER)
    asked = "What is the weather like in SF?"
    records = [
        {"id": "chat", "prompt": asked},
        {"custom_id": "response", "url": "/v1/responses", "body": {"input": asked}},
        {"id": "own", "prompt": asked, "tool_choice": "none"},
    ]
    (tmp_path / "in.jsonl").write_text("\n".join(map(json.dumps, records)))
    command = [*PROGRAM, *WORDS[:-1], *ENGINE, "plan=dp_tp", "plan.dp=2", "plan.tp=1", "job.functions=tools.py"]
    command += ["job.input=in.jsonl", "job.output=out.jsonl"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=200, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    chat, response, own = (line["response"]["body"] for line in lines)
    answer = "It is sunny in San Francisco, at 20 degrees Celsius."
    assert chat["choices"][0]["message"]["content"] == answer
    assert chat["messages"][0]["tool_calls"][0]["function"]["arguments"] == '{"city":"San Francisco"}'
    assert chat["messages"][1]["content"] == '{"sky":"sunny","celsius":20}'
    assert response["output"][-1]["content"][0]["text"] == answer
    assert "give me a get_weather tool" in own["choices"][0]["message"]["content"]
    assert "called       get_weather 2 times, 0 of them failed" in done.stdout


def test_what_cannot_work_is_said_before_anything_is_loaded(tmp_path: Path):
    words = [*WORDS, "job.input=none.jsonl", "job.output=out.jsonl"]
    done = subprocess.run([*PROGRAM, *words], capture_output=True, text=True, check=False, cwd=tmp_path, timeout=120)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "error: job.input=none.jsonl: there is no such file."
    assert "loaded" not in done.stderr


def start_worker(given: Path, output: Path, name: str, delay_s: float = 0.03) -> subprocess.Popen[str]:
    command = [sys.executable, WORKER, str(given), str(output), name, str(delay_s), "2"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_three_processes_share_one_input_and_one_is_killed(tmp_path: Path):
    given, output = write_records(tmp_path / "in.jsonl", 150), tmp_path / "out.jsonl"
    workers = [start_worker(given, output, f"task{number}") for number in range(3)]
    try:
        deadline = time.monotonic() + 120
        while not all(list(Path(f"{output}.parts").glob(f"part-task{number}-0.jsonl")) for number in range(3)):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(0.3)
        workers[1].send_signal(signal.SIGKILL)
        results = [worker.communicate(timeout=100) for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    assert [worker.returncode for worker in workers] == [0, -9, 0], results
    contents = [json.loads(results[number][0]) for number in (0, 2)]
    assert any(content["complete"] for content in contents), results
    assert answers_in(output) == expected(150)
    assert all(content["records"] > 0 for content in contents)
