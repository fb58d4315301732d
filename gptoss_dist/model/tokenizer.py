"""A transformers tokenizer for gpt-oss, built from the harmony vocabulary: for checkpoints that came without one.

The files are what a checkpoint folder holds: tokenizer.json (byte-pair ranks as merges, the o200k pre-tokenizer, the
special tokens up to the model's vocabulary size), tokenizer_config.json, special_tokens_map.json, chat_template.jinja.
"""

from __future__ import annotations

import base64
import functools
import json
import os
import shutil
from collections.abc import Mapping
from importlib import resources
from pathlib import Path

from filelock import FileLock
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from gptoss_dist.cache import cache_folder
from gptoss_dist.errors import CheckpointError
from gptoss_dist.harmony.vocab import VOCABULARY_SHA256, find_vocabulary, prefetch_vocabulary

VOCABULARY_SIZE = 201088
BOS, EOS, PAD = "<|startoftext|>", "<|return|>", "<|endoftext|>"
_FIRST_SPECIAL = 199998
_NAMED = {
    199998: "startoftext",
    199999: "endoftext",
    200002: "return",
    200003: "constrain",
    200005: "channel",
    200006: "start",
    200007: "end",
    200008: "message",
    200012: "call",
    200018: "endofprompt",
}
# The split of text before merging, as published with the o200k_base encoding (tiktoken_ext/openai_public.py).
O200K_PATTERN = "|".join(
    (
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    )
)
_LONGEST_CONTEXT = 131072  # tokens; the models' max_position_embeddings
_CACHE_VERSION = 1  # raise it when the content of tokenizer.json changes


def build_tokenizer(folder: Path) -> None:
    """Write the tokenizer's files into `folder`, which is made when missing.

    tokenizer.json is converted once a machine (some seconds) and then copied out of the cache. Raises VocabularyError
    when the vocabulary is not to be had.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(_cached_tokenizer_json(), folder / "tokenizer.json")
    special = {"bos_token": BOS, "eos_token": EOS, "pad_token": PAD}
    config = {
        **special,
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": _LONGEST_CONTEXT,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    _write_json(folder / "tokenizer_config.json", config)
    _write_json(folder / "special_tokens_map.json", special)
    (folder / "chat_template.jinja").write_text(chat_template(), encoding="utf-8")


def load_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """Load the tokenizer of a checkpoint folder, from disk only; the last one is kept, for it takes seconds to read.

    Raises CheckpointError naming the file.
    """
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise CheckpointError(
            f"{path} is missing: the checkpoint has no tokenizer. Copy it there from the model's hub."
        )
    try:
        return _load(folder, _seen(folder))
    except Exception as error:  # the tokenizers library raises bare Exception for a torn file
        raise CheckpointError(f"the tokenizer in {folder} cannot be read: {error}. Fetch {path.name} again.") from error


@functools.lru_cache(maxsize=1)
def _load(folder: Path, seen: tuple[tuple[str, int, int], ...]) -> PreTrainedTokenizerFast:  # noqa: ARG001  a key
    return PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)


def _seen(folder: Path) -> tuple[tuple[str, int, int], ...]:
    """Differs where a file of the folder does that a tokenizer may be made of."""
    files = [one for one in sorted(folder.iterdir()) if one.suffix in (".json", ".jinja") and one.is_file()]
    return tuple((one.name, one.stat().st_mtime_ns, one.stat().st_size) for one in files)


def chat_template() -> str:
    """Our chat template, which renders what `gptoss_dist.harmony.conversation.render` renders, token for token."""
    return resources.files("gptoss_dist.harmony").joinpath("chat_template.jinja").read_text(encoding="utf-8")


def special_tokens() -> list[str]:
    """Every special token in id order, from 199998 up to the model's vocabulary size."""
    return [f"<|{_NAMED.get(token, f'reserved_{token}')}|>" for token in range(_FIRST_SPECIAL, VOCABULARY_SIZE)]


def _cached_tokenizer_json() -> Path:
    """tokenizer.json in our cache, converted when it is not there; processes that come at once wait for the first."""
    target = cache_folder() / "tokenizer" / f"tokenizer-v{_CACHE_VERSION}-{VOCABULARY_SHA256[:12]}.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(target.with_suffix(".lock")):
        if not target.is_file():
            found = find_vocabulary() or prefetch_vocabulary()
            temporary = target.with_suffix(f".{os.getpid()}")
            _convert(found.path).save(str(temporary), pretty=False)
            temporary.replace(target)
    return target


def _convert(vocabulary: Path) -> Tokenizer:
    """The `<base64> <rank>` lines as a byte-level BPE model with its pre-tokenizer and special tokens."""
    ranks: dict[bytes, int] = {}
    for line in vocabulary.read_bytes().splitlines():
        token, rank = line.split()
        ranks[base64.b64decode(token)] = int(rank)
    letters = _byte_letters()
    spelled = {token: "".join(letters[byte] for byte in token) for token in ranks}
    vocab = {spelled[token]: rank for token, rank in ranks.items()}
    merges = [(spelled[left], spelled[right]) for left, right in _merges(ranks)]
    tokenizer = Tokenizer(models.BPE(vocab, merges, fuse_unk=False, ignore_merges=True))
    split = pre_tokenizers.Split(Regex(O200K_PATTERN), behavior="isolated", invert=False)
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in special_tokens()])
    return tokenizer


def _merges(ranks: dict[bytes, int]) -> list[tuple[bytes, bytes]]:
    """Every pair of tokens that makes a token, in the order in which byte-pair encoding prefers them.

    tiktoken merges the neighbours whose union has the lowest rank, whichever way the union splits, so each split of a
    token is listed, all of them at the token's own rank.
    """
    merges: list[tuple[int, int, int, bytes, bytes]] = []
    for token, rank in ranks.items():
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in ranks and right in ranks:
                merges.append((rank, ranks[left], ranks[right], left, right))
    merges.sort()
    return [(left, right) for _, _, _, left, right in merges]


def _byte_letters() -> dict[int, str]:
    """Byte to printable letter, as byte-level BPE spells bytes since GPT-2's encoder.py (`bytes_to_unicode`)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + index) for index, byte in enumerate(others)}


def _write_json(path: Path, content: Mapping[str, object]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
