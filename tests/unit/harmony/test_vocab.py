from __future__ import annotations

import hashlib
import http.server
import io
import json
import os
import subprocess
import sys
import tarfile
import threading
import time
from pathlib import Path

import pytest

from gptoss_dist.cache import cache_folder
from gptoss_dist.errors import VocabularyError
from gptoss_dist.harmony import vocab, vocab_sources
from gptoss_dist.jobs.prefetch import prefetch_vocab


@pytest.fixture(autouse=True)
def alone(monkeypatch, tmp_path):
    """An empty cache, no npm, no proxy, and an official address where nobody listens."""
    (tmp_path / "bin").mkdir()
    for name in (vocab.BASE_VARIABLE, "HF_HUB_OFFLINE", "GPTOSS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("GPTOSS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(vocab_sources, "OFFICIAL_ADDRESS", "http://127.0.0.1:1/o200k_base.tiktoken")


@pytest.fixture
def cached(tmp_path):
    return tmp_path / "cache" / "encodings" / "o200k_base.tiktoken"


@pytest.fixture
def serve(monkeypatch):
    """Starts a server as the official address; `serve(answer)` calls answer(handler) for each request."""
    servers = []

    def start(answer):
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                asked.append(self.path)
                answer(self)

            def log_message(self, *args):
                pass

        asked = []
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        servers.append(server)
        address = f"http://127.0.0.1:{server.server_port}/o200k_base.tiktoken"
        monkeypatch.setattr(vocab_sources, "OFFICIAL_ADDRESS", address)
        return asked

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def reply(content):
    def answer(handler):
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        handler.wfile.write(content)

    return answer


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def fake_npm(tmp_path, script):
    npm = tmp_path / "bin" / "npm"
    npm.write_text(f'#!/bin/sh\nPATH=/usr/bin:/bin\necho "$@" >> {tmp_path}/npm.log\n{script}\n')
    npm.chmod(0o755)
    return tmp_path / "npm.log"


def npm_archive(path, vocabulary, member="package/encoders/o200k_base.json"):
    """An archive of the layout that `npm pack tiktoken` leaves, its ranks in lines of 5000."""
    tokens = [line.split()[0].decode() for line in vocabulary.splitlines()]
    lines = [" ".join(["!", str(first), *tokens[first : first + 5000]]) for first in range(0, len(tokens), 5000)]
    content = json.dumps({"pat_str": "", "bpe_ranks": "\n".join(lines)}).encode()
    with tarfile.open(path, "w:gz") as packed:
        entry = tarfile.TarInfo(member)
        entry.size = len(content)
        packed.addfile(entry, io.BytesIO(content))
    return path


def test_the_cache_folder_is_the_users_or_the_one_named(monkeypatch, tmp_path):
    assert cache_folder() == tmp_path / "cache"
    monkeypatch.delenv("GPTOSS_CACHE")
    assert cache_folder() == Path.home() / ".cache" / "gptoss-dist"


def test_nothing_is_found_where_nothing_is():
    assert vocab.find_vocabulary() is None


def test_the_named_folder_is_found_before_the_cache(monkeypatch, tmp_path, cached, vocabulary_bytes):
    write(cached, vocabulary_bytes)
    assert vocab.find_vocabulary() == vocab.Found(cached, "cache")
    monkeypatch.setenv(vocab.BASE_VARIABLE, str(tmp_path / "named"))
    missing = f"TIKTOKEN_ENCODINGS_BASE: no file {tmp_path}/named/o200k_base.tiktoken"
    assert vocab.find_vocabulary() == vocab.Found(cached, "cache", (missing,))
    named = write(tmp_path / "named" / "o200k_base.tiktoken", vocabulary_bytes)
    assert vocab.find_vocabulary() == vocab.Found(named, "TIKTOKEN_ENCODINGS_BASE")
    assert vocab.prefetch_vocabulary() == vocab.Found(named, "TIKTOKEN_ENCODINGS_BASE")


def test_a_wrong_file_is_named_with_both_sums(cached, vocabulary_bytes):
    torn = vocabulary_bytes[:1000]
    write(cached, torn)
    with pytest.raises(VocabularyError) as raised:
        vocab.find_vocabulary()
    for part in (str(cached), hashlib.sha256(torn).hexdigest(), vocab.VOCABULARY_SHA256, "gptoss prefetch vocab"):
        assert part in str(raised.value)


def test_the_official_address_is_asked_once(serve, cached, vocabulary_bytes):
    asked = serve(reply(vocabulary_bytes))
    found = vocab.prefetch_vocabulary()
    assert (found.path, found.source) == (cached, "official address")
    assert cached.read_bytes() == vocabulary_bytes
    assert vocab.prefetch_vocabulary() == vocab.Found(cached, "cache")
    assert asked == ["/o200k_base.tiktoken"]
    assert {path.name for path in cached.parent.iterdir()} == {cached.name, f".{cached.name}.lock"}


def test_npm_is_next_when_the_address_fails(tmp_path, cached, vocabulary_bytes):
    archive = npm_archive(tmp_path / "prepared.tgz", vocabulary_bytes)
    log = fake_npm(tmp_path, f"cp {archive} ./tiktoken-1.0.22.tgz")
    found = vocab.prefetch_vocabulary()
    assert (found.path, found.source) == (cached, "npm package tiktoken@1.0.22")
    assert cached.read_bytes() == vocabulary_bytes
    assert [reason.split(":")[0] for reason in found.tried] == ["cache", "official address"]
    assert log.read_text().startswith("pack tiktoken@1.0.22 --ignore-scripts")


def test_a_torn_copy_in_the_cache_is_replaced(serve, cached, vocabulary_bytes):
    write(cached, vocabulary_bytes[:-1])
    serve(reply(vocabulary_bytes))
    found = vocab.prefetch_vocabulary()
    assert cached.read_bytes() == vocabulary_bytes
    assert "It is replaced" in found.tried[0]


def test_a_wrong_file_in_the_named_folder_is_left_alone(monkeypatch, serve, tmp_path, vocabulary_bytes):
    named = write(tmp_path / "named" / "o200k_base.tiktoken", b"mine")
    monkeypatch.setenv(vocab.BASE_VARIABLE, str(tmp_path / "named"))
    asked = serve(reply(vocabulary_bytes))
    with pytest.raises(VocabularyError, match=r"Remove the file, or unset TIKTOKEN_ENCODINGS_BASE"):
        vocab.prefetch_vocabulary()
    assert (asked, named.read_bytes()) == ([], b"mine")


@pytest.mark.parametrize("name", ["HF_HUB_OFFLINE", "GPTOSS_OFFLINE"])
def test_offline_asks_nobody_and_says_so(monkeypatch, tmp_path, serve, vocabulary_bytes, name):
    monkeypatch.setenv(name, "1")
    asked = serve(reply(vocabulary_bytes))
    log = fake_npm(tmp_path, "exit 0")
    with pytest.raises(
        VocabularyError, match=r"(?s)not tried, HF_HUB_OFFLINE or GPTOSS_OFFLINE is set.*gptoss prefetch"
    ):
        vocab.prefetch_vocabulary()
    assert asked == []
    assert not log.exists()


def test_offline_still_finds_what_is_here(monkeypatch, cached, vocabulary_bytes):
    monkeypatch.setenv("GPTOSS_OFFLINE", "true")
    write(cached, vocabulary_bytes)
    assert vocab.prefetch_vocabulary().path == cached


def test_every_source_that_failed_is_listed_with_its_reason(cached):
    with pytest.raises(VocabularyError) as raised:
        vocab.prefetch_vocabulary()
    lines = str(raised.value).splitlines()
    assert f"cache: no file {cached}" in lines[1]
    assert "official address: http://127.0.0.1:1/" in lines[2]
    assert "refused" in lines[2]
    assert "npm package tiktoken@1.0.22: no `npm` command on PATH" in lines[3]
    assert "gptoss prefetch vocab" in lines[4]
    assert not cached.exists()


def stall(handler):
    time.sleep(1)


def drip(handler):
    handler.send_response(200)
    handler.end_headers()
    for _ in range(20):
        handler.wfile.write(b"x" * 2**18)
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (lambda handler: handler.send_error(503, "busy"), "HTTP Error 503: busy"),
        (reply(b"<html>log in</html>"), "gave 19 bytes of sha256"),
        (stall, "timed out"),
        (drip, "too slow"),
    ],
    ids=["error", "portal", "stalled", "slow"],
)
def test_an_address_that_misbehaves_is_a_reason(monkeypatch, serve, cached, answer, says):
    monkeypatch.setattr(vocab_sources, "_ANSWER_SECONDS", 0.3)
    monkeypatch.setattr(vocab_sources, "_DOWNLOAD_SECONDS", 0.2)
    serve(answer)
    with pytest.raises(VocabularyError, match=says):
        vocab.prefetch_vocabulary()
    assert not cached.exists()


def test_an_endless_answer_is_cut(monkeypatch, serve):
    monkeypatch.setattr(vocab_sources, "_LARGEST_BYTES", 2**19)
    serve(drip)
    with pytest.raises(VocabularyError, match="far larger than the vocabulary"):
        vocab.prefetch_vocabulary()


@pytest.mark.parametrize(
    ("script", "says"),
    [
        ("echo 'npm ERR! no such host' >&2; exit 1", "ended with status 1: npm ERR! no such host"),
        ("exit 7", "ended with status 7: and said nothing"),
        ("exit 0", "left 0 archives"),
        ("echo torn > tiktoken-1.0.22.tgz", "cannot be read out of tiktoken-1.0.22.tgz"),
        ("sleep 5", "gave nothing in"),
    ],
    ids=["refused", "silent", "nothing", "torn", "hung"],
)
def test_an_npm_that_fails_is_a_reason(monkeypatch, tmp_path, script, says):
    monkeypatch.setattr(vocab_sources, "_NPM_SECONDS", 0.5)
    fake_npm(tmp_path, f"exec sh -c {script!r}" if "sleep" not in script else f"exec {script}")
    with pytest.raises(VocabularyError, match=says):
        vocab.prefetch_vocabulary()


def test_an_archive_without_the_ranks_is_a_reason(tmp_path, vocabulary_bytes):
    archive = npm_archive(tmp_path / "prepared.tgz", vocabulary_bytes, member="package/other.json")
    fake_npm(tmp_path, f"cp {archive} ./tiktoken-1.0.22.tgz")
    with pytest.raises(VocabularyError, match=r"package/encoders/o200k_base\.json cannot be read"):
        vocab.prefetch_vocabulary()


def test_other_ranks_are_refused_by_their_sum(tmp_path, cached, vocabulary_bytes):
    archive = npm_archive(tmp_path / "prepared.tgz", vocabulary_bytes[: vocabulary_bytes.rindex(b"\n", 0, -1) + 1])
    fake_npm(tmp_path, f"cp {archive} ./tiktoken-1.0.22.tgz")
    with pytest.raises(VocabularyError, match=r"npm package tiktoken@1\.0\.22: gave .* bytes of sha256"):
        vocab.prefetch_vocabulary()
    assert not cached.exists()


def test_ranks_of_another_shape_are_a_reason():
    with pytest.raises(vocab_sources.SourceFailedError, match="not as expected"):
        vocab_sources.ranks_to_tiktoken("! first IQ==")


def test_a_cache_that_cannot_be_made_is_named(monkeypatch, tmp_path):
    write(tmp_path / "file", b"")
    monkeypatch.setenv("GPTOSS_CACHE", str(tmp_path / "file"))
    with pytest.raises(VocabularyError, match="Set GPTOSS_CACHE to a folder that can be written"):
        vocab.prefetch_vocabulary()


def test_a_lock_that_cannot_be_taken_matters_only_when_fetching(cached, vocabulary_bytes):
    (cached.parent / f".{cached.name}.lock").mkdir(parents=True)
    with pytest.raises(VocabularyError, match="cannot be written"):
        vocab.prefetch_vocabulary()
    write(cached, vocabulary_bytes)
    assert vocab.prefetch_vocabulary().path == cached


def test_eight_processes_at_once_fetch_once(tmp_path, cached, vocabulary_bytes):
    archive = npm_archive(tmp_path / "prepared.tgz", vocabulary_bytes)
    log = fake_npm(tmp_path, f"sleep 0.2; cp {archive} ./tiktoken-1.0.22.tgz")
    code = (
        "from gptoss_dist.harmony import vocab, vocab_sources as sources\n"
        "sources.OFFICIAL_ADDRESS = 'http://127.0.0.1:1/'\n"
        "print(vocab.prefetch_vocabulary().source)"
    )
    command = [sys.executable, "-c", code]
    started = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(8)]
    sources = sorted(process.communicate()[0].strip() for process in started)
    assert sources == ["cache"] * 7 + ["npm package tiktoken@1.0.22"]
    assert len(log.read_text().splitlines()) == 1


def run_python(code, **environment):
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )
    return done.stdout + done.stderr


LOAD = """
from gptoss_dist.errors import VocabularyError
from gptoss_dist.harmony.vocab import load_encoding
try:
    print(load_encoding().encode("hello"), load_encoding() is load_encoding())
except VocabularyError as error:
    print("VocabularyError:", error)
"""


def test_the_encoding_loads_from_the_cache_with_the_network_off(cached, vocabulary_bytes):
    write(cached, vocabulary_bytes)
    assert run_python(LOAD, GPTOSS_OFFLINE="1").split("\n")[0] == "[24912] True"


def test_an_encoding_that_cannot_be_loaded_names_the_way_out(cached):
    said = run_python(LOAD, HF_HUB_OFFLINE="1")
    assert "VocabularyError: No source gave the harmony vocabulary" in said
    assert "gptoss prefetch vocab" in said
    write(cached, b"torn")
    said = run_python(LOAD, HF_HUB_OFFLINE="1")
    assert f"VocabularyError: {cached} is not the harmony vocabulary" in said
    assert "gptoss prefetch vocab" in said


def test_prefetch_says_what_it_did(serve, cached, vocabulary_bytes):
    serve(reply(vocabulary_bytes))
    assert prefetch_vocab() == {
        "vocab": str(cached),
        "source": "official address",
        "sha256": vocab.VOCABULARY_SHA256,
        "tried": [f"cache: no file {cached}"],
    }
