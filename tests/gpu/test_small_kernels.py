"""The small kernels at gpt-oss-120b's widths, in bfloat16, against their references on the same inputs, in graphs."""

from __future__ import annotations

import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]

if torch.cuda.is_available():
    from gptoss_dist.kernels import (
        dependent_launch,
        embedding_reference,
        embedding_triton,
        norm_reference,
        norm_triton,
        projection_cuda,
        projection_reference,
        projection_triton,
        rotary_reference,
        rotary_triton,
        router_reference,
        router_triton,
        sample_reference,
        sample_triton,
    )
    from gptoss_dist.kernels.projection_tiles import candidates_few, candidates_one
    from gptoss_dist.kernels.turning import Heads, Turning

HIDDEN, EXPERTS, VOCAB = 2880, 128, 201088
TOKENS = pytest.mark.parametrize("tokens", [1, 3, 8, 16, 64])


def normal(*shape, dtype=torch.bfloat16):
    return torch.randn(shape, device="cuda").to(dtype)


def replayed(step):
    """What `step` returns from a graph, its outputs poisoned before the replay."""
    step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        made = step()
    for part in made if isinstance(made, tuple) else (made,):
        part.fill_(torch.nan if part.is_floating_point() else -77)
    graph.replay()
    torch.cuda.synchronize()
    return made


@pytest.fixture
def dependent():
    """The test turns programmatic dependent launch off and on."""
    yield
    dependent_launch.enable(True)


def relative(found, wanted):
    return ((found.double() - wanted.double()).norm() / wanted.double().norm()).item()


@TOKENS
def test_norm(tokens):
    residual_TH, update_TH, weight_H = normal(tokens, HIDDEN), normal(tokens, HIDDEN), normal(HIDDEN)
    start_TH = residual_TH.clone()
    found = replayed(lambda: norm_triton.add_norm(residual_TH.copy_(start_TH), update_TH, weight_H, 1e-5))
    wanted_TH = start_TH.clone()
    wanted = norm_reference.add_norm(wanted_TH, update_TH, weight_H, 1e-5)
    assert torch.equal(residual_TH, wanted_TH)
    torch.testing.assert_close(found, wanted, rtol=2**-7, atol=1e-6)  # one unit in the last place


@TOKENS
@pytest.mark.parametrize("ranks", [1, 4])
def test_rotary(tokens, ranks):
    query_heads, kv_heads, head_size, page_size = 64 // ranks, 8 // ranks, 64, 64
    qkv_TC = normal(tokens, (query_heads + 2 * kv_heads) * head_size)
    position_T = torch.randint(0, 131072, (tokens,), device="cuda")
    slot_T = torch.randperm(8 * page_size, device="cuda")[:tokens]
    slot_T[tokens // 2 :: 5] = -1
    frequency = 150000.0 ** -(torch.arange(32, device="cuda") / 32)
    caches = [torch.full((2, 8, page_size, kv_heads, head_size), torch.nan).bfloat16().cuda() for _ in range(2)]
    heads = Heads(query_heads, kv_heads, head_size)
    turns = rotary_reference.rotary_angles(position_T, frequency, 1.3466, torch.bfloat16)
    made = rotary_triton.rotary_angles(position_T, frequency, 1.3466, torch.bfloat16)
    torch.testing.assert_close(made, turns, rtol=2**-7, atol=2**-7)
    found = replayed(lambda: rotary_triton.rotate_and_store(qkv_TC, Turning(*turns, slot_T, *caches[0], heads)))
    wanted = rotary_reference.rotate_and_store(qkv_TC, Turning(*turns, slot_T, *caches[1], heads))
    torch.testing.assert_close(found, wanted, rtol=2**-7, atol=2**-7)
    torch.testing.assert_close(caches[0], caches[1], rtol=2**-7, atol=2**-7, equal_nan=True)


def test_rotary_writes_to_pages_that_no_32_bit_number_reaches():
    shape = (16, 8, 64)
    pages = 2**31 // (16 * 8 * 64) + 2
    key, value = (torch.empty(pages, *shape, dtype=torch.bfloat16, device="cuda") for _ in range(2))
    qkv_TC = normal(1, (64 + 2 * 8) * 64)
    position_T, slot_T = torch.zeros(1, dtype=torch.int32, device="cuda"), torch.tensor([pages * 16 - 1], device="cuda")
    turns = rotary_reference.rotary_angles(position_T, torch.ones(32, device="cuda"), 1.0, torch.bfloat16)
    rotary_triton.rotate_and_store(qkv_TC, Turning(*turns, slot_T, key, value, Heads(64, 8, 64)))
    heads = qkv_TC.view(-1, 64)  # position 0 turns nothing
    assert torch.equal(key[-1, -1], heads[64:72])
    assert torch.equal(value[-1, -1], heads[72:])


@TOKENS
def test_router(tokens):
    normed_TH, weight_EH, bias_E = normal(tokens, HIDDEN), normal(EXPERTS, HIDDEN) / 50, normal(EXPERTS)
    index_TK, weight_TK = replayed(lambda: router_triton.route(normed_TH, weight_EH, bias_E, 4))
    exact_TE = normed_TH.double() @ weight_EH.double().T + bias_E.double()
    assert all(len(set(row)) == 4 for row in index_TK.tolist())
    # Summed in another order a logit may round to its neighbour: what is chosen is at most that much below the best.
    bound = 2**-7 * exact_TE.abs().max()
    best_TK = router_reference.choose(exact_TE, 4)[0].long()
    assert (exact_TE.gather(1, index_TK.long()) - exact_TE.gather(1, best_TK)).abs().max() < bound
    chosen_TK = exact_TE.gather(1, index_TK.long()).softmax(dim=1)
    assert (weight_TK - chosen_TK).abs().max() < bound


@TOKENS
def test_routes_are_added_with_the_norm(tokens):
    residual_TH, rows_PH, weight_H = normal(tokens, HIDDEN), normal(4 * tokens, HIDDEN).float(), normal(HIDDEN)
    index_P = torch.randint(-8, EXPERTS + 8, (4 * tokens,), device="cuda", dtype=torch.int32)
    rows_PH[(index_P < 0) | (index_P >= EXPERTS)] = torch.nan
    start_TH, operands = residual_TH.clone(), (rows_PH, index_P, EXPERTS, weight_H, 1e-5)
    found = replayed(lambda: norm_triton.add_routes_norm(residual_TH.copy_(start_TH), *operands))
    wanted_TH = start_TH.clone()
    wanted = norm_reference.add_routes_norm(wanted_TH, *operands)
    assert torch.equal(residual_TH, wanted_TH)
    torch.testing.assert_close(found, wanted, rtol=2**-7, atol=1e-6)


def layers_without_experts(tokens, count):
    """A chain of what stands before and after attention, and the start of the next layer, over its own weights."""
    weights = [
        (normal(5120, HIDDEN) / 50, normal(5120), normal(HIDDEN, 4096) / 64, normal(HIDDEN), normal(EXPERTS, HIDDEN))
        for _ in range(count)
    ]
    start_TH, norm_H, router_bias_E = normal(tokens, HIDDEN), normal(HIDDEN), normal(EXPERTS)
    rows_PH = normal(4 * tokens, HIDDEN).float()
    key, value = (torch.zeros(tokens, 16, 8, 64, device="cuda").bfloat16() for _ in range(2))
    position_T = torch.randint(0, 131072, (tokens,), device="cuda", dtype=torch.int32)
    turns = rotary_reference.rotary_angles(position_T, torch.rand(32, device="cuda"), 1.3466, torch.bfloat16)
    turning = Turning(*turns, torch.arange(tokens, device="cuda") * 16, key, value, Heads(64, 8, 64))
    torch.cuda.synchronize()

    def chain(begin, end):
        residual_TH = start_TH.clone()
        normed_TH = norm_triton.add_norm(residual_TH, None, norm_H, 1e-5)
        made = []
        for qkv_CH, bias_C, output_HC, bias_H, router_EH in weights:
            seen_TC = begin(normed_TH, qkv_CH, bias_C, turning).flatten(1)
            after = end(seen_TC, output_HC, bias_H, residual_TH, norm_H, 1e-5, router_EH, router_bias_E, 4)
            normed_TH = norm_triton.add_routes_norm(residual_TH, rows_PH, after[1].flatten(), EXPERTS, norm_H, 1e-5)
            made += [seen_TC, *after, normed_TH]
        return (*made, key.clone(), value.clone(), residual_TH)

    return chain


def begin_separately(normed_TH, weight_CH, bias_C, turning):
    qkv_TC = projection_reference.project(normed_TH, weight_CH, bias_C)
    return rotary_reference.rotate_and_store(qkv_TC, turning)


def end_separately(out_TC, weight_HC, bias_H, residual_TH, *others):
    projection_reference.project(out_TC, weight_HC, bias_H, residual_TH)
    return router_reference.norm_route(residual_TH, *others)


@TOKENS
def test_fused_functions_do_what_the_separate_ones_do(tokens):
    chain = layers_without_experts(tokens, 1)
    found = chain(projection_cuda.begin_attention, projection_cuda.end_attention)
    wanted = chain(begin_separately, end_separately)
    for name, place in {"queries": 0, "normed": 1, "keys": -3, "values": -2}.items():
        assert relative(found[place], wanted[place]) < 1e-2, name
    assert relative(found[-1], wanted[-1]) < 1e-2
    # Another rounding may take another of two experts that are as good, and hardly twice for a token.
    assert (found[2][:, :, None] == wanted[2][:, None]).any(dim=2).sum(dim=1).min() >= 3


@TOKENS
def test_dependent_launch_changes_no_bit(tokens, dependent):
    chain = layers_without_experts(tokens, 12)
    functions = (projection_cuda.begin_attention, projection_cuda.end_attention)
    dependent_launch.enable(False)
    wanted = [part.clone() for part in chain(*functions)]
    dependent_launch.enable(True)
    for _ in range(5):
        for part, plain in zip(replayed(lambda: chain(*functions)), wanted, strict=True):
            assert torch.equal(part, plain)
        for part, plain in zip(chain(*functions), wanted, strict=True):
            assert torch.equal(part, plain)


@pytest.mark.parametrize("tokens", [1, 2, 16])
def test_every_block_shape_of_the_projections(tokens):
    x_TC, weight_OC, bias_O = normal(tokens, 2880), normal(5120, 2880), normal(5120)
    wanted = projection_reference.project(x_TC.float(), weight_OC.float(), bias_O.float())
    for tile in candidates_one if tokens == 1 else candidates_few:
        found = projection_triton.project(x_TC, weight_OC, bias_O, **{"one" if tokens == 1 else "few": tile})
        assert relative(found, wanted) < 2.5e-3, tile


@pytest.mark.parametrize("tokens", [1, 2, 16, 17])
@pytest.mark.parametrize(("rows", "columns"), [(5120, 2880), (2880, 4096), (VOCAB, 2880)])
def test_projection(tokens, rows, columns):
    x_TC, weight_OC, bias_O, residual_TO = (
        normal(*shape) for shape in ((tokens, columns), (rows, columns), (rows,), (tokens, rows))
    )
    found = replayed(lambda: projection_triton.project(x_TC, weight_OC, bias_O))
    wanted = projection_reference.project(x_TC.float(), weight_OC.float(), bias_O.float())
    assert relative(found, wanted) < 2.5e-3  # one rounding to bfloat16
    wanted = wanted + residual_TO.float()
    assert relative(projection_triton.project(x_TC, weight_OC, bias_O, residual_TO), wanted) < 2.5e-3


@TOKENS
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_sample(tokens, dtype):
    logits_RV = normal(tokens, VOCAB, dtype=dtype)
    temperature_R = torch.tensor([0.0, 1.0, 0.6], device="cuda").repeat(tokens)[:tokens]
    seed_R = torch.randint(-(2**63), 2**63 - 1, (tokens,), device="cuda")
    given = (temperature_R, seed_R, torch.randint(0, 131072, (tokens,), device="cuda"))
    score_R, token_R = replayed(lambda: sample_triton.best_of_shard(logits_RV, 0, *given))
    wanted_R, best_R = sample_reference.best_of_shard(logits_RV, 0, *given)
    torch.testing.assert_close(score_R, wanted_R, rtol=1e-5, atol=1e-5)
    assert (token_R == best_R).float().mean() > 0.9  # logarithms differ in the last bits, so a near tie may fall apart
    for edges in ([0, 100544, VOCAB], [0, 50273, 100545, 150818, VOCAB]):
        parts = [sample_triton.best_of_shard(logits_RV[:, low:high], low, *given) for low, high in pairwise(edges)]
        score_GR, token_GR = (torch.stack(part) for part in zip(*parts, strict=True))
        assert torch.equal(replayed(lambda s=score_GR, t=token_GR: sample_triton.merge_shards(s, t)), token_R)


@TOKENS
def test_embedding(tokens):
    weight_VH = normal(VOCAB // 4, HIDDEN)
    ids_T = torch.randint(-1, VOCAB, (tokens,), device="cuda")
    found = replayed(lambda: embedding_triton.embed(ids_T, weight_VH, VOCAB // 4))
    assert torch.equal(found, embedding_reference.embed(ids_T, weight_VH, VOCAB // 4))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs that map each other's memory")
def test_all_reduce_over_symmetric_memory():
    ranks = min(4, torch.cuda.device_count())
    script = Path(__file__).with_name("reduce_ranks.py")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}", str(script)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
