"""What a calibration builds on: the offline engine, log-probabilities of a prompt, and a verified round's logits."""

from __future__ import annotations

from sgl_lvspec.seams.expectation import Contains, Has, Seam

_ENGINE = "sglang.srt.entrypoints.engine.Engine"
_LOGPROBS = "sglang.srt.managers.scheduler_components.logprob_result_processor.SchedulerLogprobResultProcessor"
_SESSION, _MEASURE, _PROBE = "calibrate/session.py", "calibrate/measure.py", "calibrate/probe.py"

ENGINE = (
    Seam(
        _ENGINE,
        Has("async_generate shutdown loop tokenizer_manager"),
        _SESSION,
        "one running pair answers many requests at once, on the engine's own loop",
    ),
)

LOGPROBS = (
    Seam(
        "sglang.srt.managers.schedule_batch.Req._compute_max_prefix_len",
        Contains(
            "if self.return_logprob and self.logprob_start_len >= 0:\n"
            "    max_prefix_len = min(max_prefix_len, self.logprob_start_len)"
        ),
        _MEASURE,
        "a cached answer is computed again where its log-probabilities are asked for",
    ),
    Seam(
        f"{_LOGPROBS}._process_input_token_logprobs",
        Contains("req.logprob.input_token_logprobs_val = [None] + input_token_logprobs[:-1]"),
        _MEASURE,
        "the first position that is asked for has no log-probability, so one more is asked for",
    ),
)

PROBE = (
    Seam(
        "sglang.srt.layers.logits_processor.LogitsProcessorOutput",
        Has("next_token_logits auxiliary_device_output"),
        _PROBE,
        "what a round is measured on, and where its report hangs",
    ),
)

SEAMS = ENGINE + LOGPROBS + PROBE
