"""The tiny model and the sentences that searches run on."""

import pytest

from tests.eval import tiny


@pytest.fixture(scope="module")
def model_and_data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("search")
    return tiny.save(tiny.bert(num_layers=1), folder / "model"), str(tiny.write_sentences(folder / "data"))
