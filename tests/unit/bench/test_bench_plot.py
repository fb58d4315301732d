from __future__ import annotations

import struct
import subprocess
import sys
from pathlib import Path

import pytest

from gptoss_dist.bench.load import Kind, Row
from gptoss_dist.bench.plot import check_plot, draw
from gptoss_dist.bench.statistics import RowResult, blank
from gptoss_dist.errors import ConfigError


def line(streams: int, kind: Kind = Kind.decode) -> RowResult:
    found = blank(Row(kind, streams, 10, 10, streams))
    found.output_tokens_per_s, found.ttft_p50_ms, found.ttft_p99_ms = 100.0 * streams, 20.0 + streams, 40.0 + streams
    found.itl_p50_ms, found.itl_p99_ms = 5.0, 9.0
    return found


def test_a_png_of_sensible_size(tmp_path: Path):
    file = draw([line(8), line(1), blank(Row(Kind.decode, 64, 1, 1, 1))], "toy on CPU", str(tmp_path / "x.png"))
    assert file == tmp_path / "x.png"
    content = file.read_bytes()
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = struct.unpack(">II", content[16:24])
    assert 1000 <= width <= 2000
    assert 400 <= height <= 1000
    assert 5_000 < len(content) < 500_000


def test_two_loads_draw_two_pictures(tmp_path: Path):
    one, two = (draw([line(1), line(n)], "t", str(tmp_path / f"{n}.png")) for n in (2, 9))
    assert one is not None
    assert two is not None
    assert one.read_bytes() != two.read_bytes()


def test_nothing_to_draw_is_no_file(tmp_path: Path):
    assert draw([line(1, Kind.prefill)], "t", str(tmp_path / "x.png")) is None
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("name", "said"), [("x.pdf", "the plot is a PNG"), ("no/such/x.png", "there is no folder")])
def test_a_file_that_could_not_be_written(name, said, tmp_path):
    with pytest.raises(ConfigError, match=said):
        check_plot(str(tmp_path / name))
    check_plot(str(tmp_path / "fine.png"))


def test_without_matplotlib_the_extra_is_named():
    code = (
        "import importlib.util as u; find = u.find_spec\n"
        "u.find_spec = lambda name, *a: None if name == 'matplotlib' else find(name, *a)\n"
        "from gptoss_dist.bench.plot import check_plot\ncheck_plot('x.png')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "ConfigError: job.plot=x.png: drawing needs matplotlib: pip install 'gptoss-dist[plot]'." in done.stderr
