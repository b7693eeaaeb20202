"""One model as the edge knows it. Owns what it is made of: its files, its text, its rules, and the pools that answer for it.

What is everybody's is `coordinator.edge.answers.edge`; a request's `model` chooses one of these.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from coordinator.edge.answers.answer_forms import AnswerForms
from coordinator.edge.answers.answer_parts import AUTO, USUAL_FAMILY, Parsers, formats_of
from coordinator.edge.answers.generation_run import RunContext
from coordinator.edge.answers.grammar_check import GrammarCheck
from coordinator.edge.answers.sampling import ModelRules, SamplingDefaults, Vocabulary
from coordinator.edge.text.chat_template import ChatTemplate
from coordinator.edge.text.prompts import make_reader
from coordinator.edge.text.tokenizer import TextTokenizer
from protocol.randomness import random_seed

if TYPE_CHECKING:
    from pathlib import Path

    from coordinator.cluster.service_api import ModelControl, Service
    from coordinator.edge.answers.answer_parts import AnswerFormats
    from coordinator.edge.answers.grammar_check import Compiles
    from coordinator.edge.http.limits import EdgeLimits
    from coordinator.edge.http.side_work import SideWork
    from coordinator.edge.telemetry.metrics import EdgeMetrics
    from coordinator.edge.telemetry.request_record import TraceSink
    from coordinator.edge.text.prompts import PromptReader
    from protocol.clock import Clock
    from protocol.model_config import ModelConfig
    from protocol.sampling import Pooling


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model made ready in `directory`; the first of `served_names` is what answers call it. `pooling` is how its hidden
    states become an embedding, None where it is not for that."""

    served_names: tuple[str, ...]
    directory: Path
    config: ModelConfig
    max_model_len: int
    pooling: Pooling | None = None

    @property
    def name(self) -> str:
        """The name in answers."""
        return self.served_names[0]


@dataclass(frozen=True, slots=True)
class Offer:
    """A model, who computes it, and the operator's word over its files. Unless `allow_special_tokens_in_content`,
    messages cannot write its control tokens. Without `grammars` no answer is kept to one."""

    model: ServedModel
    service: Service
    chat_template: Path | None = None
    allow_special_tokens_in_content: bool = False
    sampling_defaults: SamplingDefaults | None = None
    parsers: Parsers = field(default_factory=Parsers)
    grammars: Compiles | None = None


@dataclass(frozen=True, slots=True)
class Shared:
    """What all models of one application have in common."""

    limits: EdgeLimits
    clock: Clock
    side: SideWork
    traces: TraceSink | None = None
    residents: ModelControl | None = None


@dataclass(frozen=True, slots=True)
class Served:
    """One model's parts; made once by `make_served`."""

    model: ServedModel
    context: RunContext
    reader: PromptReader
    rules: ModelRules
    vocabulary: Vocabulary
    forms: AnswerForms
    formats: AnswerFormats


def make_served(offer: Offer, metrics: EdgeMetrics, shared: Shared) -> Served:
    """The parts of a model. Raises ConfigError for files that cannot be used."""
    model, limits = offer.model, shared.limits
    tokenizer = TextTokenizer.from_directory(model.directory)
    template = ChatTemplate.from_directory(model.directory, offer.chat_template)
    reader = make_reader(
        tokenizer,
        template,
        limits,
        shared.clock,
        model.max_model_len,
        side=shared.side,
        guarded=not offer.allow_special_tokens_in_content,
        tool_prompt=bool(offer.parsers.tool_prompt),
    )
    parsers = offer.parsers
    if reader.tells_tools and parsers.tools == AUTO:
        parsers = Parsers(USUAL_FAMILY, parsers.reasoning)
    formats = formats_of(template, tokenizer, parsers)
    own = SamplingDefaults.from_directory(model.directory, random_seed)
    eos_token_ids = tuple(sorted({*model.config.eos_token_ids, *own.eos_token_ids}))
    vocabulary = Vocabulary(model.config.vocab_size, eos_token_ids, tokenizer.token_name)
    defaults = offer.sampling_defaults or own
    return Served(
        model=model,
        context=RunContext(
            offer.service,
            tokenizer,
            metrics,
            shared.clock,
            shared.side.turns,
            shared.traces,
            shared.residents,
        ),
        reader=reader,
        rules=ModelRules(defaults, vocabulary, model.max_model_len, limits.request_deadline_s),
        vocabulary=vocabulary,
        forms=AnswerForms(GrammarCheck(offer.grammars), formats, tokenizer),
        formats=formats,
    )
