"""An engine of backend inductor on a GPU against its program: built, loaded, fed at every bucket, by many threads."""

import threading

import numpy as np
import pytest

from engine.backend import BuildOptions, get_backend
from engine.inspect.layers import InspectRequest
from engine.shapes import parse_shapes
from eval.parity.program import ProgramRunner
from quant.int8_program.export import export_program, save_program
from tests.families import get_family
from tests.kernels.device import needs_gpu
from tests.quant.test_families import calibrated

pytestmark = needs_gpu
SHAPES = [(4, 32), (1, 16), (3, 20), (2, 32)]  # of calls: the usual bucket, a bucket's own, two that are padded


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    family = get_family("bert")
    path = tmp_path_factory.mktemp("program") / "model.pt2"
    save_program(*export_program(calibrated(family, family.model(is_short=True))), path)
    return path


@pytest.fixture(scope="module")
def engine(program):
    out = program.parent / "engine"
    get_backend("inductor").build(program, out, BuildOptions(parse_shapes(["input_ids:1x16:4x32:4x32"])))
    return out


def feeds(batch, length, seed):
    rng = np.random.default_rng(seed)
    mask = np.ones((batch, length), np.int64)
    mask[-1, length // 2 :] = 0
    ids = rng.integers(10, 99, (batch, length))
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}


def test_every_bucket_gives_what_the_program_gives_call_after_call(program, engine):
    with get_backend("inductor").load(engine) as runner:
        expected = ProgramRunner(program)
        calls = [feeds(*shape, seed) for seed, shape in enumerate(SHAPES * 2)]
        got = [runner(call)["logits"] for call in calls]  # all kept: a later call must not write over an earlier one
        for call, y in zip(calls, got, strict=True):
            np.testing.assert_allclose(y, expected(call)["logits"], atol=2e-2)
        with pytest.raises(ValueError, match="the engine takes"):
            runner(feeds(5, 32, 0))


def test_clients_call_their_own_runners_at_once_at_shapes_that_are_not_captured_yet(program, engine):
    expected = ProgramRunner(program)
    failures = []

    def client(number, runner):
        try:
            for seed, shape in enumerate(reversed(SHAPES)):
                call = feeds(*shape, 10 * number + seed)
                np.testing.assert_allclose(runner(call)["logits"], expected(call)["logits"], atol=2e-2)
        except BaseException as error:
            failures.append(error)

    runners = [get_backend("inductor").load(engine) for _ in range(3)]
    threads = [threading.Thread(target=client, args=each) for each in enumerate(runners)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for runner in runners:
        runner.close()
    assert not failures


def test_inspect_takes_feeds_of_another_bucket(engine):
    found = get_backend("inductor").inspect(str(engine), InspectRequest(feeds=feeds(1, 16, 0), iterations=3))
    assert found.layers and "batch 1, sequence 16" in found.conditions
