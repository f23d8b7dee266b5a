"""SGLang's own server test kits for speculation (`sglang.test.kits.spec_server_kits`) against a server with LVSPEC.

A kit is a mix-in of `test_*` methods that reads the server's address, its process and its thresholds off `self`. The
methods are SGLang's; each thing that is not is marked below with what SGLang has in its place, and why it does not fit.

Not run: `SpecAccuracyKit` and `SpecPerfKit` (gsm8k is a download and beyond the demo pair), `SpecHiddenStatesKit`
(needs --enable-return-hidden-states), `SpecSamplingMaskKit` (SGLang has sampling masks for its own algorithms only).
"""

from __future__ import annotations

import functools
import importlib.util
import json
import random
import sys
import time
from types import ModuleType
from typing import Any
from unittest import mock

import pytest
import requests
from transformers import AutoConfig

from tests.server.prompts import chat
from tests.server.serving import Server

with pytest.MonkeyPatch.context() as patch:
    # sglang.test imports SGLang's benchmarks, and one of their data sets imports `datasets`: with pyarrow and pandas
    # some 200 MB that nothing here calls. An empty module of that name, gone after this import, is enough.
    if importlib.util.find_spec("datasets") is None:
        patch.setitem(sys.modules, "datasets", ModuleType("datasets"))
        patch.setattr(sys.modules["datasets"], "load_dataset", None, raising=False)
    from sglang.test.kits import radix_cache_server_kit, spec_server_kits
    from sglang.test.server_fixtures import spec_eagle_fixture

# SGLang starts a tree of 401 prompts with up to 256 new tokens each, minutes on a CPU.
TREE = {"num_nodes": 40, "chunk_len": 32}

# The demo pair knows clips and a little small talk. To what the kits ask about code, presidents and cities it answers
# a few stray words, of which no acceptance length can be measured; "Give me a json" it never brings to a closing brace.
IN_OUR_WORDS = {
    "Human: Give me a fully functional FastAPI server. Show the python code.\n\nAssistant:": chat(
        "Write the alphabet."
    ),
    "Hello, my name is": chat("Who are you?"),
    "The president of the United States is": chat("What can you do?"),
    "The future of AI is": chat("Name some colors."),
    "I have a very good idea on": chat("Count to five."),
    "Today is a sunndy day and": chat("Name some shapes."),
    "Give me a json": "Who are you? Answer in JSON.",
    "Here is the information of the capital of France in the JSON format.\n": chat("Who are you? Answer in JSON."),
}
ID_FIELDS = ("input_ids", "token_ids_logprob")


class LVSpecServer(spec_eagle_fixture.SpecEagleServerBase):
    """SGLang's fixture with this session's servers in place of one that it would start with EAGLE on a GPU.

    What the kits take from it stays: the tokenizer, `send_request` and `run_decode`.
    """

    # SGLang's watcher ends the whole run by os._exit when a server dies; pytest would report nothing, and the other
    # servers would live on. This is its own switch for that.
    expect_server_exit = True
    reference: Server
    served = "lvspec_server"  # the fixture of the server under test

    @classmethod
    def setUpClass(cls) -> None:
        """Nothing to start: `attached` has the servers."""

    @classmethod
    def tearDownClass(cls) -> None:
        """Nothing to end."""

    def setUp(self) -> None:
        super().setUp()
        random.seed(0)  # the kits draw from the global generator; a failure can be repeated


@pytest.fixture(scope="class", autouse=True)
def attached(request: pytest.FixtureRequest, plain_server: Server) -> None:
    """What SGLang's fixture sets once its server runs, and the reference."""
    case = request.cls
    server: Server = request.getfixturevalue(case.served)
    case.base_url, case.process, case.model = server.url, server.process, server.model
    case.reference, case._tokenizer = plain_server, None


class TestParity(spec_server_kits.SpecParityKit, LVSpecServer):
    @classmethod
    def setUpClass(cls) -> None:
        """SGLang starts a reference on a fixed port, with a GPU's memory and backend, and ends it: ours is running."""

    @functools.cached_property
    def parity_ref_outputs(self) -> dict[str, str]:
        """What SGLang's setUpClass captures from the reference."""
        return {prompt: spec_server_kits._greedy(self.reference.url, prompt) for prompt in self.parity_prompts}


class TestParityOfALooseServer(TestParity):
    """Its prompts are text, so they are strict whatever the server loosens."""

    served = "loose_server"


@pytest.mark.usefixtures("in_our_words")
class TestCorrectness(spec_server_kits.SpecCorrectnessKit, LVSpecServer):
    """SGLang's thresholds stand (3.1 and 1.75 tokens a round), on questions that the demo pair knows."""


@pytest.mark.usefixtures("in_our_words")
class TestFeatures(spec_server_kits.SpecFeatureKit, LVSpecServer):
    # An assertion that fails in one of the kit's threads fails the test, not only that thread.
    pytestmark = pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")

    def test_radix_attention(self) -> None:
        """SGLang's, on a smaller tree of its own making; and the answers are compared, where the kit reads a status."""
        nodes = radix_cache_server_kit.gen_radix_tree(**TREE)
        with mock.patch.object(radix_cache_server_kit, "gen_radix_tree", return_value=nodes):
            super().test_radix_attention()
        request = {
            "input_ids": [node["input_ids"] for node in nodes],
            "sampling_params": [{"max_new_tokens": node["decode_len"], "temperature": 0} for node in nodes],
        }
        urls = (self.base_url, self.reference.url)
        ours, theirs = (requests.post(url + "/generate", json=request, timeout=300).json() for url in urls)
        assert [answer["output_ids"] for answer in ours] == [answer["output_ids"] for answer in theirs]

    def test_request_abort(self) -> None:
        super().test_request_abort()
        assert self.process.poll() is None

    def send_requests_abort(self) -> None:
        """SGLang's, with requests that outlast its second of patience: ours would be answered, and nothing aborted."""
        for prompt in spec_eagle_fixture.PROMPTS:
            time.sleep(random.uniform(0, 2))
            sampling = {"temperature": 0, "max_new_tokens": 3000, "ignore_eos": True}
            with pytest.raises(requests.exceptions.ReadTimeout):
                requests.post(
                    self.base_url + "/generate", json={"text": prompt, "sampling_params": sampling}, timeout=1
                )


class TestPenalties(spec_server_kits.SpecPenaltyKit, LVSpecServer):
    pass


@pytest.mark.usefixtures("in_our_words")
class TestGrammar(spec_server_kits.SpecGrammarKit, LVSpecServer):
    # SGLang's keys. Its strings and its number may go on for ever, and a model that knows no cities does not end them.
    grammar_json_schema = json.dumps(
        {
            "type": "object",
            "properties": {
                "name": {"type": "string", "pattern": "^[a-z]{1,8}$"},
                "population": {"type": "integer", "minimum": 0, "maximum": 999},
                "country": {"type": "string", "pattern": "^[a-z ]{1,8}$"},
                "capital": {"type": "string", "pattern": "^[a-z ]{1,8}$"},
            },
            "required": ["name", "population", "country", "capital"],
        }
    )


@pytest.mark.usefixtures("in_our_words")
class TestLogprobs(spec_server_kits.SpecLogprobKit, LVSpecServer):
    # SGLang's 0.5 is for bfloat16, where verifying rounds otherwise than scoring; this server computes in float32.
    logprob_match_delta = 1e-3


@pytest.fixture
def in_our_words(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Puts what a kit sends into our pair's words, and its token ids (up to 31,999) into our vocabulary.

    Ids are folded, so that equal prefixes stay equal; the server would refuse them as they are. What the model can
    sample stays as it is, the padding behind the tokenizer's last word included: a kit sends answers back.
    """
    config = AutoConfig.from_pretrained(request.instance.model)
    post, num_ids = requests.post, config.get_text_config().vocab_size

    def fold(ids: Any) -> Any:
        return [fold(entry) for entry in ids] if isinstance(ids, list) else ids % num_ids

    def ours(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: fold(part) if name in ID_FIELDS else ours(part) for name, part in value.items()}
        if isinstance(value, list):
            return [ours(part) for part in value]
        return IN_OUR_WORDS.get(value, value) if isinstance(value, str) else value

    def post_ours(url: str, **options: Any) -> requests.Response:
        return post(url, **ours(options))

    monkeypatch.setattr(requests, "post", post_ours)
