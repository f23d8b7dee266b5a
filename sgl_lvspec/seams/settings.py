"""What makes a request strict, what ends an answer, and what would end the scheduler: read from SGLang's request."""

from __future__ import annotations

from sgl_lvspec.seams.expectation import Contains, Extends, Has, Seam, Signature

_REQ = "sglang.srt.managers.schedule_batch.Req"
_PARAMS = "sglang.srt.sampling.sampling_params.SamplingParams"
_ITEM = "sglang.srt.managers.schedule_batch.MultimodalDataItem"
_SETTINGS = "verification/settings.py"
_PROTECTED = "verification/protected.py"
_REQUESTS = "request_checks.py"
_GUARD = "scheduler_guard.py"
_TYPES = "wire_types.py"
_IO = "sglang.srt.managers.io_struct"

REQUEST = (
    Seam(_REQ, Has("sampling_params multimodal_inputs grammar"), _SETTINGS, "what makes a request strict"),
    Seam(
        _PARAMS,
        Has(
            "custom_params logit_bias json_schema regex ebnf structural_tag stop_strs stop_regex_strs stop_token_ids "
            "frequency_penalty presence_penalty repetition_penalty min_new_tokens"
        ),
        _SETTINGS,
        "what makes a request strict",
    ),
    Seam(
        f"{_PARAMS}.__post_init__",
        Contains(
            "self.stop_strs = self.stop",
            "self.stop_regex_strs = self.stop_regex",
            "self.json_schema = self.json_schema or None",
            "self.structural_tag = self.structural_tag or None",
        ),
        _SETTINGS,
        "stop strings move here from what the client sent, and an empty grammar is none",
    ),
    Seam("sglang.srt.managers.schedule_batch.MultimodalInputs", Has("mm_items"), _SETTINGS, "images and videos"),
    Seam(
        f"{_ITEM}.is_valid",
        Contains("self.is_image() or self.is_video() or self.is_audio()"),
        _SETTINGS,
        "an item is one of three; a fourth kind may have visual slots too",
    ),
    Seam(
        "sglang.srt.sampling.sampling_params.CustomParamValue",
        Contains("Union[_JsonScalar, List[_JsonScalar], Dict[str, _JsonScalar]]"),
        "request_checks.py",
        "deeper values end the scheduler, so settings are flat",
    ),
)

ENDS = (
    Seam(
        f"{_REQ}._check_token_based_finish",
        Contains(
            "token_id in self.sampling_params.stop_token_ids",
            "token_id in self.eos_token_ids",
            "token_id == self.tokenizer.eos_token_id",
            "token_id in self.tokenizer.additional_stop_token_ids",
        ),
        _PROTECTED,
        "the tokens that end an answer; all of them are protected",
    ),
    Seam(
        "sglang.srt.configs.model_config.ModelConfig._get_hf_eos_token_id",
        Contains("eos_ids = {eos_ids} if isinstance(eos_ids, int) else set(eos_ids)", "eos_ids | generation_eos_ids"),
        _PROTECTED,
        "end tokens of config and generation config, as a set",
    ),
)

GUARDS = (
    Seam(
        f"{_IO}.GenerateReqInput.normalize_batch_and_arguments",
        Signature("(self)"),
        _REQUESTS,
        "our BEFORE hook bounds the number of samples, of which a list is made here",
    ),
    Seam(f"{_IO}.GenerateReqInput", Has("log_metrics rid sampling_params"), _GUARD, "the request as it was sent"),
    Seam(
        "sglang.srt.entrypoints.http_server.health_generate",
        Contains("GenerateReqInput(rid=rid, input_ids=[0], sampling_params=sampling_params, log_metrics=False)"),
        _GUARD,
        "how SGLang's own requests after its health are told from a client's",
    ),
    Seam(
        f"{_IO}.sock_recv",
        Contains("data = socket.recv(flags=flags)", "return msgpack_decode(data)"),
        _TYPES,
        "the scheduler decodes by declared types and handles no error",
    ),
    Seam(f"{_IO}.TokenizedGenerateReqInput", Extends("BaseReq"), _TYPES, "the types that travel"),
    Seam(f"{_IO}.BaseReq", Extends("msgspec.Struct"), _TYPES, "the types that travel"),
)

SEAMS = REQUEST + ENDS + GUARDS
