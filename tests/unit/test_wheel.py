"""The wheel, installed into an empty folder: its own configuration, from an empty directory."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import gptoss_dist

ROOT = Path(gptoss_dist.__file__).parents[1]
SOURCES = ("pyproject.toml", "README.md", "gptoss_dist", "conf")


def run(*command: str, cwd: Path, **extra: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "RANK", "SLURM_"))}
    return subprocess.run(
        command, capture_output=True, text=True, cwd=cwd, env={**kept, "CUDA_VISIBLE_DEVICES": "", **extra}, timeout=240
    )


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built from a copy of the sources, so that nothing is written beside them."""
    if not (ROOT / "pyproject.toml").is_file():
        pytest.skip("the package is installed, and its sources are not here")
    folder = tmp_path_factory.mktemp("wheel")
    sources = folder / "sources"
    sources.mkdir()
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, sources / name, ignore=shutil.ignore_patterns("__pycache__"))
        elif (ROOT / name).is_file():
            shutil.copy(ROOT / name, sources / name)
    options = ["--no-build-isolation"] if importlib.util.find_spec("hatchling") else []
    built = run(
        *(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", *options, "--wheel-dir", str(folder), "."),
        cwd=sources,
    )
    assert built.returncode == 0, built.stderr
    (file,) = folder.glob(f"gptoss_dist-{gptoss_dist.__version__}-*.whl")
    return file


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    target = tmp_path_factory.mktemp("installed")
    done = run(
        *(sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(target), str(wheel)),
        cwd=target,
    )
    assert done.returncode == 0, done.stderr
    return target


def test_the_wheel_holds_every_module_and_every_choice(wheel):
    held, sources = set(zipfile.ZipFile(wheel).namelist()), wheel.parent / "sources"
    for folder, inside in (("gptoss_dist", "gptoss_dist"), ("conf", "gptoss_dist/conf")):
        for file in (sources / folder).rglob("*"):
            if file.is_file():
                assert f"{inside}/{file.relative_to(sources / folder).as_posix()}" in held
    assert not [name for name in held if name.startswith(("tests/", "conf/")) or "__pycache__" in name]


def test_it_plans_from_an_empty_directory_with_the_configuration_it_carries(installed, tmp_path):
    words = ("plan", "model=gpt_oss_120b", "plan=tp", "plan.tp=4", "--json")
    program = (
        "import sys, gptoss_dist, gptoss_dist.config as c\nprint(gptoss_dist.__file__, c.conf_folder(), sep='\\n')\n"
    )
    where = run(sys.executable, "-c", program, cwd=tmp_path, PYTHONPATH=str(installed))
    assert where.stdout.splitlines() == [
        str(installed / "gptoss_dist" / "__init__.py"),
        str(installed / "gptoss_dist" / "conf"),
    ]
    done = run(sys.executable, "-m", "gptoss_dist", *words, cwd=tmp_path, PYTHONPATH=str(installed))
    assert (done.returncode, done.stderr) == (0, "")
    result = json.loads(done.stdout)
    assert (result["plan"], result["tp"], len(result["ranks"])) == ("tp", 4, 4)
    assert list(tmp_path.iterdir()) == []


def test_it_reads_that_configuration_and_no_other(installed, tmp_path):
    """A choice changed inside the installed copy changes what the program says."""
    changed = tmp_path / "copy"
    shutil.copytree(installed, changed)
    file = changed / "gptoss_dist" / "conf" / "plan" / "tp.yaml"
    file.write_text(file.read_text().replace("tp: null", "tp: 8").replace("experts: tp", "experts: ep"))
    words = ("plan", "model=gpt_oss_120b", "plan=tp", "--json")
    done = run(sys.executable, "-m", "gptoss_dist", *words, cwd=tmp_path, PYTHONPATH=str(changed))
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["tp"] == 8
    assert result["rules"]["model.layers.*.mlp.experts"] == "ep_dispatch_experts"


def test_help_names_the_folder_of_the_installed_configuration(installed, tmp_path):
    done = run(sys.executable, "-m", "gptoss_dist", "--help", cwd=tmp_path, PYTHONPATH=str(installed))
    assert done.returncode == 0
    assert str(installed / "gptoss_dist" / "conf") in done.stdout


def test_the_console_script_is_there(installed, tmp_path):
    script = installed / "bin" / "gptoss"
    assert script.is_file()
    done = run(sys.executable, str(script), "plan", "model=tiny", cwd=tmp_path, PYTHONPATH=str(installed))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("tiny by plan=single")


def test_the_installed_server_has_its_web_page(wheel, installed, tmp_path):
    program = (
        "from gptoss_dist.server.web_files import load_files\n"
        "for name, file in load_files().items():\n    print(name, file.etag)\n"
    )
    done = run(sys.executable, "-c", program, cwd=tmp_path, PYTHONPATH=str(installed))
    assert done.returncode == 0, done.stderr
    here = run(sys.executable, "-c", program, cwd=wheel.parent / "sources")
    assert done.stdout == here.stdout
    assert {"page.html", "page.css", "page.js", "chat.js", "icon.svg"} <= set(done.stdout.split())


def test_the_chat_template_is_in_the_wheel(wheel):
    name = "gptoss_dist/harmony/chat_template.jinja"
    assert zipfile.ZipFile(wheel).read(name) == (wheel.parent / "sources" / name).read_bytes()
