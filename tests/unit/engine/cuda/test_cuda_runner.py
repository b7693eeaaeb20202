"""The GPU runner against the torch reference: the same weights, the same blocks, the same steps."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
pytest.importorskip("triton")

from engine.cuda.dummy_weights import DummyWeights  # noqa: E402
from engine.cuda.few_rows import FewRowsModel  # noqa: E402
from engine.cuda.runner import CudaRunner  # noqa: E402
from engine.cuda.sampler import Draws, draw_rows  # noqa: E402
from engine.kv.block_pool import BlockPool  # noqa: E402
from engine.kv.sequence import Scheduled, Sequence  # noqa: E402
from engine.model.decoder import Model  # noqa: E402
from engine.model.ragged_batch import ragged_batch  # noqa: E402
from engine.model.weights import load_weights  # noqa: E402
from engine.reference.backend import TorchBackend  # noqa: E402
from engine.sampling.sampler import sample  # noqa: E402
from protocol.errors import InternalError  # noqa: E402
from protocol.model_config import ModelConfig  # noqa: E402
from protocol.sampling import SamplingParams  # noqa: E402

BLOCK_SIZE = 16
NUM_BLOCKS = 48
VOCAB = 300


def config(family: Any = "llama", **changes: Any) -> ModelConfig:
    return ModelConfig(
        family=family,
        vocab_size=VOCAB,
        hidden_size=128,
        intermediate_size=192,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        rms_norm_eps=1e-5,
        rope_theta=1e4,
        max_position_embeddings=512,
        attention_bias=family == "qwen2",
        **{"head_dim": 64, **changes},
    )


class Memory:
    """A pool that torch allocates."""

    def __init__(self, shape: ModelConfig, dtype: torch.dtype) -> None:
        self.num_blocks = NUM_BLOCKS
        self.block_bytes = BLOCK_SIZE * shape.kv_bytes_per_token(dtype.itemsize)
        size = self.num_blocks * self.block_bytes
        self._bytes = torch.zeros(size, dtype=torch.uint8, device=DEVICE)

    def tensor(self) -> torch.Tensor:
        return self._bytes


class Pair:
    """The runner and the reference, each with a pool of its own."""

    def __init__(self, shape: ModelConfig, dtype: torch.dtype = torch.float32) -> None:
        weights = DummyWeights(shape, dtype, DEVICE)
        self.memory = Memory(shape, dtype)
        self.runner = CudaRunner(
            shape, weights, self.memory, block_size=BLOCK_SIZE, dtype=dtype, max_num_seqs=4
        )
        self.runner.warm_up()
        kv = torch.zeros_like(self.runner._kv)
        backend = TorchBackend(shape, kv)
        self.reference = Model(shape, load_weights(weights, shape.num_layers, backend), backend)
        self.kv = kv
        self.pool = BlockPool(NUM_BLOCKS)

    def begin(self, name: str, num_tokens: int, **sampling: Any) -> Sequence:
        ids = torch.randint(0, VOCAB, (num_tokens,)).tolist()
        sequence = Sequence(
            request_id=name,
            attempt=1,
            token_ids=ids,
            num_prompt_tokens=num_tokens,
            sampling=SamplingParams(max_tokens=64, temperature=0.0, **sampling),
            root=b"",
            hold=self.pool.empty_hold(name),
        )
        assert sequence.hold.allocate(-(-(num_tokens + 20) // BLOCK_SIZE))
        return sequence

    def step(self, *entries: tuple[Sequence, int]) -> None:
        """Both compute it; tokens and every KV byte's meaning must agree."""
        batch = [Scheduled(sequence, count) for sequence, count in entries]
        found = self.runner.execute(batch)
        with torch.inference_mode():
            logits = self.reference.forward(ragged_batch(batch, BLOCK_SIZE))
        expected = iter(sample(logits.cpu(), [e.sequence for e in batch if e.samples]))
        for entry, token in zip(batch, found, strict=True):
            assert token == (next(expected) if entry.samples else None)
        torch.testing.assert_close(self.runner._kv, self.kv, rtol=1e-4, atol=1e-4)
        for entry, token in zip(batch, found, strict=True):
            entry.sequence.num_computed_tokens += entry.num_tokens
            if token is not None:
                entry.sequence.append(token)


SHAPES = {
    "llama": config(),
    "qwen2": config("qwen2"),
    "qwen3": config("qwen3", head_dim=128),
    "window": config(sliding_window=24),
    "tied": config(tie_word_embeddings=True),
}


def shapes(kept: str) -> list[Any]:
    """All shapes; the interpreter takes ten seconds for each, so all but one are deep."""
    return [
        pytest.param(shape, id=name, marks=[pytest.mark.deep] * (name != kept))
        for name, shape in SHAPES.items()
    ]


@pytest.mark.parametrize("shape", shapes("tied"))
def test_chunks_mixed_batches_and_decode_steps_agree_with_the_reference(shape) -> None:
    torch.manual_seed(1)
    pair = Pair(shape)
    first, second, third = pair.begin("a", 40), pair.begin("b", 21), pair.begin("c", 1)
    pair.step((first, 32), (second, 21))
    pair.step((first, 8), (second, 1), (third, 1))
    for _ in range(2):
        pair.step((first, 1), (second, 1), (third, 1))
    pair.step((second, 1))


@pytest.mark.parametrize("shape", shapes("window"))
def test_few_row_kernels_agree_with_the_reference(shape) -> None:
    torch.manual_seed(4)
    pair = Pair(shape)
    first, second = pair.begin("a", 17), pair.begin("b", 9)
    pair.step((first, 16), (second, 8))
    batch = [Scheduled(first, 1), Scheduled(second, 1)]
    arrays = ragged_batch(batch, BLOCK_SIZE)
    with torch.inference_mode():
        backend = pair.runner._model.backend
        few = FewRowsModel(pair.runner._model.weights)
        assert few.serves()
        found = few.run(backend.begin(arrays))  # type: ignore[arg-type]
        expected = pair.reference.forward(arrays)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(pair.runner._kv, pair.kv, rtol=1e-4, atol=1e-4)


def test_chunk_that_samples_nothing_has_no_token_and_all_its_kv() -> None:
    pair = Pair(config())
    pair.step((pair.begin("a", 40), 16))


def test_rows_that_only_the_host_can_choose_for_are_chosen_there() -> None:
    torch.manual_seed(2)
    pair = Pair(config())
    plain = pair.begin("a", 5)
    biased = pair.begin("b", 7, logit_bias={7: 50.0})
    told = pair.begin("c", 6, logprobs=2)
    batch = [Scheduled(plain, 5), Scheduled(biased, 7), Scheduled(told, 6)]
    found = pair.runner.execute(batch)
    assert found[1] is not None
    assert found[1].token_id == 7
    assert found[2] is not None
    assert found[2].logprob is not None
    assert len(found[2].logprob.top) == 2
    assert found[0] is not None
    assert found[0].logprob is None


def test_step_beyond_its_blocks_is_refused() -> None:
    pair = Pair(config())
    sequence = pair.begin("a", 10)
    with pytest.raises(InternalError, match="a: step to 11"):
        pair.runner.execute([Scheduled(sequence, 11)])


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"top_k": 3},
        {"top_p": 0.5},
        {"min_p": 0.2},
        {"top_k": 20, "top_p": 0.9, "min_p": 0.01},
        {"top_p": 1e-9},
        {"top_k": 5000},
    ],
    ids=str,
)
def test_draws_on_the_device_are_those_of_the_host(params) -> None:
    torch.manual_seed(3)
    sequences = [
        SimpleNamespace(
            sampling=SamplingParams(
                max_tokens=9, temperature=0.7 + 0.1 * (seed % 5), seed=seed, **params
            ),
            num_tokens=seed,
            num_output_tokens=1,
            guide=None,
        )
        for seed in range(200)
    ]
    logits = (torch.randn(200, VOCAB) * 3).to(DEVICE)
    logits[::7, 5] = logits[::7, 9]  # ties
    found = draw_rows(logits, Draws.of(sequences, DEVICE)).tolist()  # type: ignore[arg-type]
    expected = [token.token_id for token in sample(logits.cpu(), sequences)]  # type: ignore[arg-type]
    differing = sum(a != b for a, b in zip(found, expected, strict=True))
    assert differing <= 1, f"{differing} of 200 draws fell between two tokens"
