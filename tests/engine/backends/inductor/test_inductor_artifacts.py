"""What a compiled engine takes of torch's cache: its own code, whatever the process compiled before."""

import torch

from engine.backends.inductor.backend import own_artifacts


def artifacts_of(function):
    """Return the names of what torch's compiler saves for a function."""
    torch._dynamo.reset()
    with own_artifacts():
        torch.compile(function)(torch.ones(8, 8))
        saved = torch.compiler.save_cache_artifacts()
    assert saved is not None
    return {name for names in saved[1].artifacts.values() for name in names}


def test_an_engine_holds_its_own_code_alone_and_all_of_it(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    first = artifacts_of(lambda x: (x.sin() * 2).relu().sum(-1))
    second = artifacts_of(lambda x: (x.cos() + 3).tanh().mean(-1))
    assert first and second and not first & second
    assert artifacts_of(lambda x: (x.sin() * 2).relu().sum(-1)) == first  # found in the cache, and held all the same
