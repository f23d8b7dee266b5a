"""How SGLang prepares media and checks requests, and how it shows media to a model."""

from __future__ import annotations

from sgl_lvspec.seams.expectation import Avoids, Contains, Equals, Has, Seam, Signature

_BATCH = "sglang.srt.managers.schedule_batch"
_QWEN_VL = "sglang.srt.multimodal.processors.qwen_vl"
_PROCESSOR = "sglang.srt.multimodal.processors.base_processor.BaseMultimodalProcessor"
_VIDEO = "sglang.srt.utils.video_decoder.VideoDecoderWrapper"
_MANAGER = "sglang.srt.managers.tokenizer_manager.TokenizerManager"
_FIELDS = "sglang.srt.arg_groups.fields"
_TIME = "video_time.py"
_MEDIA = "media_checks.py"
_REQUESTS = "request_checks.py"
_POSITIONS = "position_limit.py"
_MAIN = "main_process.py"
_SOURCES = "media_sources.py"
_CONTAINER = "video_container.py"
_COMMON = "sglang.srt.utils.common"
_SYSTEM_ONE = "sglang.srt.entrypoints.systemone.serving"

SHOWN = (
    Seam(
        "sglang.srt.managers.mm_utils.embed_mm_inputs",
        Contains(
            "sorted((value for item in items for value in item.padding_values()))",
            "get_embedding_and_mask(...)",
            "input_ids.clamp_(min=0, max=vocab_size - 1)",
            "input_embedding(input_ids)",
        ),
        "worker.py",
        "media are found by padded ids, which the target's prefill overwrites in place, so slots are marked before it",
    ),
)

TIMES = (
    Seam(
        f"{_QWEN_VL}._get_processor_video_config",
        Signature("(video_config, video_metadata)"),
        _TIME,
        "our AFTER hook takes the metadata from here",
    ),
    Seam(
        f"{_QWEN_VL}.QwenVLImageProcessor._process_mm_data_uncached",
        Contains(
            "self.load_mm_data(..., prompt=input_text, image_data=image_data, video_data=request_obj.video_data)",
            "preprocess_video(video, video_config=self.video_config)",
            "processor_video_config = _get_processor_video_config(self.video_config, video_metadata)",
            "processor_kwargs['processor_video_config'] = processor_video_config",
            "self.process_and_combine_mm_data_async(base_output, self.mm_tokens, **processor_kwargs)",
        ),
        _TIME,
        "metadata of all videos is known before the processor is called, in this order",
    ),
    Seam(
        f"{_QWEN_VL}.QwenVLImageProcessor._process_mm_data_uncached",
        Avoids("'qwen2_5_vl'"),
        _TIME,
        "SGLang gives Qwen2.5-VL no video times, so we do; drop ours once it does",
    ),
    Seam(
        f"{_PROCESSOR}.process_mm_data",
        Signature(
            "(self, input_text, images=None, videos=None, audios=None, processor=None, processor_video_config=None, "
            "**kwargs)"
        ),
        _TIME,
        "our BEFORE hook adds two keywords for transformers",
    ),
    Seam(
        "sglang.srt.multimodal.processors.base_processor",
        Contains("self.process_mm_data(input_text=input_text, images=images, audios=audios, videos=videos, **kwargs)"),
        _TIME,
        "our BEFORE hook reads videos and settings by keyword",
    ),
    Seam(
        f"{_PROCESSOR}._postprocess_mm_items_before_transport",
        Signature("(self, mm_items, *, images)"),
        _TIME,
        "our AFTER hook puts time into a video's hash",
    ),
    Seam(
        "sglang.srt.multimodal.cache.resolve_multimodal_item_hash",
        Signature("(*, existing_hash=None, feature=None, precomputed_embeddings=None, namespace=None)"),
        _TIME,
        "the namespace makes equal frames at other times another video",
    ),
    Seam(
        f"{_BATCH}.MultimodalDataItem",
        Has("is_video set_hash hash feature precomputed_embeddings model_specific_data"),
        _TIME,
        "a video and its hash",
    ),
    Seam(f"{_QWEN_VL}.QwenVLImageProcessor", Has("model_type video_config"), _TIME, "what is served and how"),
    Seam(f"{_QWEN_VL}.FPS", Equals("2.0"), _TIME, "the rate that is assumed for bare frames"),
    Seam("sglang.srt.environ.Envs", Has("SGLANG_RUST_SERVER"), _MAIN, "that server prepares requests elsewhere"),
    Seam(f"{_FIELDS}.serving.Serving.tokenizer_worker_num", Equals("1"), _MAIN, "extra workers load no plugins"),
    Seam(f"{_FIELDS}.serving.Serving.smg_grpc_mode", Equals("False"), _MAIN, "requests would be prepared elsewhere"),
    Seam(f"{_FIELDS}.serving.Serving.grpc_mode", Equals("False"), _MAIN, "requests would be prepared elsewhere"),
    Seam(f"{_FIELDS}.disagg.Disagg.encoder_only", Equals("False"), _MAIN, "requests would be prepared elsewhere"),
    Seam(f"{_FIELDS}.disagg.Disagg.language_only", Equals("False"), _MAIN, "requests would be prepared elsewhere"),
)

CHECKS = (
    Seam(
        f"{_PROCESSOR}.load_mm_data",
        Signature(
            "(self, prompt, multimodal_tokens, image_data=None, video_data=None, audio_data=None, return_text=True, "
            "discard_alpha_channel=True, audio_sample_rate=None)"
        ),
        _MEDIA,
        "our AROUND hook compares what was sent with what was read",
    ),
    Seam(
        "sglang.srt.multimodal.processors.base_processor.BaseMultiModalProcessorOutput",
        Has("images videos input_text"),
        _MEDIA,
        "our AROUND hook compares what was sent with what was read, and with the text's placeholders",
    ),
    Seam(_PROCESSOR, Has("_processor"), _MEDIA, "transformers' processor, which expands bare placeholder tokens"),
    Seam(_VIDEO, Has("avg_fps frame_shape get_frames_as_tensor __len__"), _MEDIA, "an open video"),
    Seam(f"{_VIDEO}.get_frames_as_tensor", Signature("(self, indices)"), _MEDIA, "our AROUND hook reads the frames"),
    Seam(
        f"{_QWEN_VL}.smart_nframes",
        Signature("(ele, total_frames, video_fps)"),
        _MEDIA,
        "how many frames SGLang will decode",
    ),
    Seam(
        "sglang.srt.utils.common.load_image",
        Signature("(image_file, gpu_image_decode=True)"),
        _MEDIA,
        "our AROUND hook makes PIL's limit the client's error",
    ),
    Seam(
        "sglang.srt.sampling.sampling_params.SamplingParams.normalize",
        Signature("(self, tokenizer)"),
        _REQUESTS,
        "our AROUND hook makes a broken stop_regex the client's error",
    ),
    Seam(
        "sglang.srt.sampling.sampling_params.SamplingParams.verify",
        Signature("(self, vocab_size)"),
        _REQUESTS,
        "our AFTER hook checks custom_params",
    ),
    Seam(
        "sglang.srt.sampling.sampling_params.SamplingParams",
        Has("custom_params max_new_tokens min_new_tokens stop_token_ids top_k"),
        _REQUESTS,
        "where a request's own settings arrive",
    ),
    Seam(
        "sglang.srt.sampling.sampling_params.CustomParamValue",
        Equals("Union[_JsonScalar, List[_JsonScalar], Dict[str, _JsonScalar]]"),
        _REQUESTS,
        "what the scheduler's decoder takes, and dies of otherwise",
    ),
    Seam(
        f"{_MANAGER}._validate_one_request",
        Signature("(self, obj, input_ids)"),
        _REQUESTS,
        "our AFTER hook checks the request",
    ),
    Seam(
        f"{_MANAGER}._create_tokenized_object",
        Signature("(self, obj, input_text, input_ids, input_embeds=None, mm_inputs=None, token_type_ids=None)"),
        _POSITIONS,
        "our AFTER hook checks the tokenized request",
    ),
    Seam(
        f"{_MANAGER}._create_tokenized_object",
        Contains("sampling_params.verify(self.model_config.vocab_size)"),
        _REQUESTS,
        "every request passes verify in the main process",
    ),
    Seam(_MANAGER, Has("model_config context_len"), _POSITIONS, "the model's number of tokens and positions"),
    Seam(
        "sglang.srt.managers.io_struct.TokenizedGenerateReqInput",
        Has("input_ids mm_inputs sampling_params"),
        _POSITIONS,
        "the tokenized request",
    ),
    Seam(
        "sglang.srt.managers.io_struct.GenerateReqInput",
        Has(
            "input_ids custom_logit_processor top_logprobs_num logprob_start_len input_embeds "
            "positional_embed_overrides"
        ),
        _REQUESTS,
        "the request as it was sent",
    ),
    Seam(
        "sglang.srt.utils.common.reserve_rope_cache_for_long_sequences",
        Contains("reserve = base_ctx + steps * draft * SAFETY_FACTOR + MARGIN"),
        _POSITIONS,
        "the rotary table has the context length and room for the chain",
    ),
)

ADMISSION = (
    Seam(
        f"{_MANAGER}._init_req_state",
        Signature("(self, obj, request=None)"),
        _SOURCES,
        "our BEFORE hook judges the sources of every request that came over HTTP",
    ),
    Seam(
        f"{_MANAGER}.generate_request",
        Contains(
            "obj.normalize_batch_and_arguments()",
            "self._init_req_state(obj, request)",
            "self._tokenize_one_request(obj)",
        ),
        _SOURCES,
        "every request passes there, normalized, and before media are loaded",
    ),
    Seam(
        "sglang.srt.entrypoints.engine.Engine.generate",
        Contains("self.tokenizer_manager.generate_request(obj, None)"),
        _SOURCES,
        "the owner's own program brings no HTTP request",
    ),
    Seam(
        "sglang.srt.managers.io_struct.GenerateReqInput",
        Has("image_data video_data audio_data"),
        _SOURCES,
        "every field that names media",
    ),
    Seam(
        "sglang.srt.managers.io_struct.EmbeddingReqInput",
        Has("image_data video_data audio_data"),
        _SOURCES,
        "every field that names media",
    ),
    Seam(f"{_COMMON}.ImageData", Has("url"), _SOURCES, "what chats make of an image"),
    Seam(f"{_COMMON}.VideoData", Has("url"), _SOURCES, "what chats make of a video"),
    Seam(
        f"{_COMMON}._normalize_video_input",
        Contains(
            "video_file.startswith(('http://', 'https://'))",
            "video_file.startswith('data:')",
            "pybase64.b64decode(encoded, validate=True)",
            "video_file.startswith('file://')",
            "unquote(urlparse(video_file).path)",
        ),
        _SOURCES,
        "the forms that we leave, and how each is read",
    ),
    Seam(
        f"{_COMMON}.load_image",
        Contains("image_file.startswith(('http://', 'https://'))", "unquote(urlparse(image_file).path)"),
        _SOURCES,
        "the forms that we leave, and how each is read",
    ),
    Seam(
        f"{_COMMON}.get_image_bytes",
        Contains("image_file.startswith(('file://', '/'))", "image_file.startswith('data:')"),
        _SOURCES,
        "a data: URL is never opened",
    ),
    Seam(
        f"{_COMMON}.load_audio",
        Contains(
            "audio_file.startswith('data:')", "audio_file.startswith('http://')", "audio_file.startswith('file://')"
        ),
        _SOURCES,
        "the forms that we leave, and how each is read",
    ),
    Seam(
        f"{_COMMON}._assert_media_url_allowed",
        Contains("parsed.scheme not in {'http', 'https'}"),
        _SOURCES,
        "a redirect leads to no file",
    ),
    Seam(
        f"{_SYSTEM_ONE}._read_image",
        Signature("(index, image)"),
        _SOURCES,
        "our BEFORE hook judges the one source that is read before there is a request",
    ),
    Seam(
        f"{_FIELDS}.mm.Mm.media_url_max_file_size_mb",
        Equals("64"),
        _REQUESTS,
        "the limit on downloads, which is ours on uploads, too",
    ),
    Seam(
        f"{_VIDEO}.__init__",
        Signature("(self, source, device='cpu', num_decode_threads=0)"),
        _CONTAINER,
        "our BEFORE hook looks at a video's first bytes",
    ),
    Seam(
        f"{_COMMON}.load_video",
        Contains("VideoDecoderWrapper(source, device=device)", "ValueError(f'Could not decode video: {e}')"),
        _CONTAINER,
        "what we refuse becomes a 400",
    ),
    Seam(
        f"{_COMMON}._fully_load_pil_image",
        Contains("image.load()"),
        _MEDIA,
        "our BEFORE hook knows the format before anything is run",
    ),
)

HOOKS = (
    Seam(
        "sglang.srt.plugins.hook_registry.HookSource",
        Has("plugin_name dist_name"),
        "late_hooks.py",
        "SGLang's log names us as the source of a hook",
    ),
    Seam(
        "sglang.srt.plugins.hook_registry.HookType",
        Contains("BEFORE = 'before'", "AFTER = 'after'", "AROUND = 'around'"),
        "late_hooks.py",
        "kinds of hooks, by their value",
    ),
)

SEAMS = SHOWN + TIMES + CHECKS + ADMISSION + HOOKS
