"""A field that looks misspelt is refused by its name; what other servers of these APIs take is let be."""

from __future__ import annotations

import pytest
from openai.types import completion_create_params, embedding_create_params
from openai.types.chat import completion_create_params as chat_create_params
from openai.types.responses import response_create_params

from coordinator.edge.apis.anthropic.types import CountRequest, MessagesRequest
from coordinator.edge.apis.ollama.types import ChatRequest as OllamaChat
from coordinator.edge.apis.ollama.types import Options
from coordinator.edge.apis.openai.embeddings import EmbeddingRequest
from coordinator.edge.apis.openai.responses.types import ResponsesRequest
from coordinator.edge.apis.openai.types import ChatRequest, CompletionRequest, StreamOptions
from coordinator.edge.http.bodies import check_fields
from coordinator.edge.http.misspelt import MOST, check_spelling
from protocol.errors import InvalidRequest

SAID = [{"role": "user", "content": "x"}]
CHAT = {"model": "m", "messages": SAID}
OPENAI = {
    name
    for fields in (
        chat_create_params.CompletionCreateParamsBase,
        completion_create_params.CompletionCreateParamsBase,
        response_create_params.ResponseCreateParamsBase,
        embedding_create_params.EmbeddingCreateParams,
    )
    for name in fields.__annotations__
}
FOREIGN = """
allowed_token_ids bad_words guided_decoding_backend guided_whitespace_pattern include_reasoning kv_transfer_params
length_penalty logits_processors max_new_tokens min_new_tokens mm_processor_kwargs prompt_embeds prompt_token_ids
repetition_detection return_prompt_token_ids return_tokens_as_token_ids spaces_between_special_tokens structural_tag
thinking_token_budget truncate_prompt_tokens use_beam_search vllm_xargs
custom_logit_processor logprob_start_len no_stop_trim return_hidden_states return_logprob sampling_params separate_reasoning
session_params stop_regex stream_reasoning top_logprobs_num
cache_prompt chat_format dry_multiplier dynatemp_range grammar_lazy image_data mirostat_eta mirostat_tau n_predict penalize_nl
post_sampling_probs reasoning_format repeat_last_n repeat_penalty return_progress system_prompt timings_per_token typical_p
api_version context_window_fallback_dict custom_llm_provider litellm_call_id metadata mock_response models num_retries plugins
provider top_a transforms usage
adapter_id decoder_input_details do_sample return_full_text top_n_tokens truncate watermark
embedding_only keep_alive low_vram main_gpu num_batch num_ctx num_gpu num_keep num_thread rope_frequency_base use_mlock
betas cache_control container context_management inference_geo mcp_servers output_config output_format stop_sequences
activation embedding_type embedding_types input_type late_chunking normalize pooling_params softmax
"""
ELSEWHERE = {("Options", "n_predict")}
"""llama.cpp's word for what Ollama's options call `num_predict`, where it would do nothing."""


@pytest.mark.parametrize(
    "model",
    [
        ChatRequest,
        CompletionRequest,
        ResponsesRequest,
        EmbeddingRequest,
        StreamOptions,
        MessagesRequest,
        CountRequest,
        OllamaChat,
        Options,
    ],
)
def test_what_others_take_is_let_be(model):
    for name in sorted({*OPENAI, *FOREIGN.split()} - model.model_fields.keys()):
        if (model.__name__, name) not in ELSEWHERE:
            check_spelling(model.model_construct(**{name: 1}))


@pytest.mark.parametrize(
    ("model", "told", "field", "meant"),
    [
        (ChatRequest, CHAT | {"temperture": 0.1}, "temperture", "temperature"),
        (ChatRequest, CHAT | {"Temperature": 0.1}, "Temperature", "temperature"),
        (ChatRequest, CHAT | {"maxtokens": 5}, "maxtokens", "max_tokens"),
        (ChatRequest, CHAT | {"responce_format": {}}, "responce_format", "response_format"),
        (ChatRequest, CHAT | {"tool_choices": "none"}, "tool_choices", "tool_choice"),
        (
            CompletionRequest,
            {"prompt": "x", "stop_token_id": [1]},
            "stop_token_id",
            "stop_token_ids",
        ),
        (
            CompletionRequest,
            {"prompt": "x", "stream_options": {"include_usages": True}},
            "stream_options.include_usages",
            "include_usage",
        ),
        (
            ResponsesRequest,
            {"input": "x", "max_output_token": 5},
            "max_output_token",
            "max_output_tokens",
        ),
        (EmbeddingRequest, {"input": "x", "dimension": 5}, "dimension", "dimensions"),
        (
            MessagesRequest,
            {"max_tokens": 5, "messages": SAID, "stop_sequence": ["x"]},
            "stop_sequence",
            "stop_sequences",
        ),
        (
            OllamaChat,
            CHAT | {"options": {"num_predicts": 5}},
            "options.num_predicts",
            "num_predict",
        ),
    ],
)
def test_a_misspelt_field_is_refused_by_its_name(model, told, field, meant):
    with pytest.raises(InvalidRequest) as refused:
        check_fields(told, model)
    assert str(refused.value) == f"unknown field {field!r}; did you mean {meant!r}?"
    assert (refused.value.param, refused.value.code) == (field, "unknown_parameter")


def test_a_field_that_is_given_is_meant_by_no_other():
    """Both the old spelling and the new: what answers is what is known."""
    check_fields(CHAT | {"max_tokens": 5, "max_token": 5}, ChatRequest)


def test_messages_keep_what_other_servers_wrote():
    check_fields({"messages": [{"role": "user", "content": "x", "tool_call": 1}]}, ChatRequest)


def test_a_crowd_of_unknown_fields_is_not_compared():
    crowd = {f"field_number_{number}": 1 for number in range(MOST)}
    check_fields(CHAT | crowd | {"temperture": 1}, ChatRequest)
