"""What makes a request strict, and what ends an answer: read from SGLang's request and sampling parameters."""

from __future__ import annotations

from sgl_lvspec.seams.expectation import Contains, Has, Seam

_REQ = "sglang.srt.managers.schedule_batch.Req"
_PARAMS = "sglang.srt.sampling.sampling_params.SamplingParams"
_ITEM = "sglang.srt.managers.schedule_batch.MultimodalDataItem"
_SETTINGS = "verification/settings.py"
_PROTECTED = "verification/protected.py"

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

SEAMS = REQUEST + ENDS
