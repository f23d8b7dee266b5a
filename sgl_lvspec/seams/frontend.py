"""What front-end programs with videos build on: one place that completes every request, and how media are kept."""

from __future__ import annotations

from sgl_lvspec.seams.expectation import Contains, Has, Seam, Signature

_BACKEND = "sglang.lang.backend.runtime_endpoint.RuntimeEndpoint"
_EXECUTOR = "sglang.lang.interpreter.StreamExecutor"
_ENDPOINT, _MEDIA, _SCORING = "frontend/endpoint.py", "frontend/media.py", "frontend/scoring.py"

ENDPOINT = (
    Seam(
        _BACKEND,
        Signature("(self, base_url, api_key=None, verify=None, chat_template_name=None)"),
        _ENDPOINT,
        "it asks the server for its model when it is made",
    ),
    Seam(
        _BACKEND,
        Has(
            "base_url model_info chat_template get_server_info select _generate_http_request _add_images "
            "_assert_success"
        ),
        _ENDPOINT,
        "what the endpoint reads and replaces",
    ),
    Seam(f"{_BACKEND}._add_images", Signature("(self, s, data)"), _ENDPOINT, "completes the body of a request"),
    *(
        Seam(f"{_BACKEND}.{name}", Contains("self._add_images(s, data)"), _ENDPOINT, "every request is completed")
        for name in ("commit_lazy_operations", "generate", "_generate_http_request")
    ),
    Seam(f"{_BACKEND}._assert_success", Signature("(self, res)"), _ENDPOINT, "says what the server says"),
    Seam(
        f"{_BACKEND}.generate_stream",
        Contains("self._add_images(s, data)", "self._assert_success(res)", "res.iter_lines(decode_unicode=False)"),
        _ENDPOINT,
        "completed as the others are; its response is seen before its lines are read, so a refusal can be raised",
    ),
    Seam(
        "sglang.srt.entrypoints.http_server.serve_generate_request",
        Contains(
            'out = {"error": {"message": str(e), "type": ..., "code": getattr(e, "status_code", 400), '
            '"retryable": ...}}',
            'yield b"data: " + dumps_json(out) + b"\\n\\n"',
        ),
        _ENDPOINT,
        "a refused stream is one event with the error",
    ),
    Seam(
        "sglang.lang.interpreter", Has("ProgramState StreamExecutor"), _ENDPOINT, "a program's state and its executor"
    ),
    Seam("sglang.lang.interpreter.ProgramState", Has("stream_executor"), _ENDPOINT, "what a program's lines go to"),
    Seam(
        _EXECUTOR,
        Has("backend error_ sync"),
        _ENDPOINT,
        "some lines of a program can go to the server with other settings",
    ),
    Seam(f"{_BACKEND}._generate_http_request", Signature("(self, s, data)"), _ENDPOINT, "posts what a choice needs"),
    Seam(
        f"{_BACKEND}.select", Signature("(self, s, choices, temperature, choices_method)"), _ENDPOINT, "scores choices"
    ),
    Seam(
        "sglang.lang.chat_template.ChatTemplate",
        Has("default_system_prompt stop_str image_token"),
        _ENDPOINT,
        "fields of the template that fit the model",
    ),
    Seam("sglang.lang.chat_template.get_chat_template", Signature("(name)"), _ENDPOINT, "the template by its name"),
)

MEDIA = (
    Seam(
        f"{_EXECUTOR}._execute_image",
        Contains(
            "path = expr.path",
            "base64_data = encode_image_base64(path)",
            "self.images_.append((path, base64_data))",
            "self.text_ += self.chat_template.image_token",
        ),
        _MEDIA,
        "media are kept in the order of the text, with what stood in the program",
    ),
    Seam(
        "sglang.utils.encode_image_base64",
        Contains("isinstance(image_path, bytes)"),
        _MEDIA,
        "bytes are encoded as they are, so a source of ours may be bytes",
    ),
    Seam(
        "sglang.utils.encode_video_base64",
        Contains('"video:" + pybase64.b64encode(video_bytes).decode("utf-8")'),
        _ENDPOINT,
        "a video of sglang.video is known by its first letters, and refused",
    ),
    *(
        Seam(
            f"sglang.srt.managers.io_struct.GenerateReqInput._normalize_{kind}_data",
            Contains(f"not isinstance(self.{kind}_data, list)", f"self.{kind}_data = {value} * num"),
            _ENDPOINT,
            "one medium beside several prompts belongs to each of them",
        )
        for kind, value in (("image", "[[self.image_data]]"), ("video", "[self.video_data]"))
    ),
    Seam(f"{_EXECUTOR}.fork", Contains("exes[i].images_ = list(self.images_)"), _MEDIA, "forks keep the media"),
    Seam(_EXECUTOR, Has("images_ text_"), _ENDPOINT, "the state's media and text"),
    Seam("sglang.lang.ir.SglImage", Signature("(self, path)"), _MEDIA, "an image in a program"),
    Seam(
        "sglang.lang.ir", Has("SglArgument SglImage"), _MEDIA, "a program is traced with arguments in place of values"
    ),
)

SCORING = (
    Seam(
        "sglang.lang.choices.ChoicesSamplingMethod.__call__",
        Signature(
            "(self, *, choices, normalized_prompt_logprobs, input_token_logprobs, output_token_logprobs, "
            "unconditional_token_logprobs=None)"
        ),
        _SCORING,
        "decides by what is scored",
    ),
    Seam(
        "sglang.lang.choices.ChoicesSamplingMethod",
        Has("requires_unconditional_logprobs"),
        _SCORING,
        "whether choices are scored without their prompt, too",
    ),
    Seam("sglang.lang.choices", Has("ChoicesDecision ChoicesSamplingMethod"), _SCORING, "SGLang's methods"),
)

SEAMS = ENDPOINT + MEDIA + SCORING
