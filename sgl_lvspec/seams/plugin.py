"""How SGLang loads a plugin, hooks functions for it, and carries its flags and its algorithm."""

from __future__ import annotations

from sgl_lvspec.seams.expectation import Avoids, Contains, Equals, Extends, Has, Lacks, Seam, Signature

_PLUGINS = "sglang.srt.plugins"
_HOOKS = "sglang.srt.plugins.hook_registry"
_SERVER_ARGS = "sglang.srt.server_args.ServerArgs"
_ALGORITHM = "sglang.srt.speculative.spec_info.SpeculativeAlgorithm"
_CUSTOM = "sglang.srt.speculative.spec_registry.CustomSpecAlgo"
_RELAY = "sglang.srt.managers.overlap_utils.FutureMap"

LOADING = (
    Seam(
        f"{_PLUGINS}.load_plugins", Signature("()"), "flags.py", "make_server_args loads us before it builds a record"
    ),
    Seam(
        f"{_PLUGINS}.load_plugins",
        Contains(
            "if _plugins_loaded:\n    return",
            "load_plugins_by_group(GENERAL_PLUGINS_GROUP, ...)",
            "HookRegistry.apply_hooks()",
        ),
        "plugin.py",
        "our hooks are registered by the entry point and applied right after it, once a process",
    ),
    Seam(
        f"{_PLUGINS}.GENERAL_PLUGINS_GROUP",
        Equals("'sglang.srt.plugins'"),
        "plugin.py",
        "pyproject.toml declares the entry point in this group",
    ),
    Seam(
        f"{_PLUGINS}.load_plugins_by_group",
        Contains("entry_points(group=group)", "ep.name not in allowed_set", "logger.exception(...)"),
        "doctor.py",
        "a plugin that fails to load is only logged, and SGLANG_PLUGINS names the ones to load",
    ),
    Seam("sglang.srt.environ.Envs", Has("SGLANG_PLUGINS"), "doctor.py", "the list of allowed plugins"),
    Seam(
        "sglang.srt.managers.scheduler.run_scheduler_process",
        Contains("load_plugins()", "publish(server_args, ...)"),
        "algorithm.py",
        "the algorithm must be registered in the scheduler's process before it reads the arguments",
    ),
    Seam(
        "sglang.launch_server",
        Contains("load_plugins()", "prepare_server_args(sys.argv[1:])", "run_server(server_args)"),
        "flags.py",
        "our flags must be known before the command line is parsed",
    ),
    Seam(
        f"{_HOOKS}.HookRegistry.register",
        Signature("(cls, target, hook, hook_type=HookType.AFTER, *, source=None)"),
        "plugin.py",
        "how every hook of ours is declared",
    ),
    Seam(f"{_HOOKS}.HookRegistry.apply_hooks", Signature("(cls)"), "algorithm.py", "applies hooks registered later"),
    Seam(
        f"{_HOOKS}.HookRegistry.apply_hooks",
        Contains("if target in cls._patched:\n    continue", "cls._apply_target(target, hooks)"),
        "algorithm.py",
        "a second call patches only what is new",
    ),
    Seam(f"{_HOOKS}.HookRegistry", Has("_patched", "_hooks"), "doctor.py", "doctor reads which hooks took hold"),
    Seam(f"{_HOOKS}.HookType", Has("BEFORE AFTER AROUND REPLACE"), "plugin.py", "the kinds of hooks in use"),
    Seam(
        f"{_HOOKS}._wrap_fn",
        Contains(
            "result = hook(*args, **kwargs)\nif result is not None:\n    args, kwargs = result",
            "modified = hook(result, *args, **kwargs)",
            "return modified if modified is not None else result",
        ),
        "verification/commit.py",
        "a BEFORE hook gets the arguments as they are passed, an AFTER hook the result first, and None changes nothing",
    ),
    Seam(
        f"{_HOOKS}.HookRegistry._apply_target",
        Contains(
            "isinstance(raw_attr, classmethod)",
            "if isinstance(hook, type) and hook_type == HookType.REPLACE:\n    wrapped = hook\nelse:\n    ...",
            "_propagate_patch(original, wrapped, obj)",
        ),
        "algorithm.py",
        "class methods stay class methods, a class is replaced as it is, and modules that imported the name follow",
    ),
)

FLAGS = (
    Seam(
        f"{_SERVER_ARGS}.add_cli_args", Signature("(parser)"), "flags.py", "our AFTER hook adds a group to the parser"
    ),
    Seam(
        f"{_SERVER_ARGS}.from_cli_args", Signature("(cls, args)"), "flags.py", "our AFTER hook reads our flags off args"
    ),
    Seam(
        "sglang.srt.server_args.prepare_server_args",
        Contains("ServerArgs.add_cli_args(parser)", "parser.parse_args(argv)", "ServerArgs.from_cli_args(raw_args)"),
        "flags.py",
        "every command line passes both hooks",
    ),
    Seam(
        f"{_SERVER_ARGS}.__setattr__",
        Contains("not name.startswith('_') or name in _underscore_field_names()"),
        "flags.py",
        "`_lvspec` may be set on the record at any time",
    ),
    Seam(
        f"{_SERVER_ARGS}.__reduce__",
        Contains("dict(self.__dict__)"),
        "flags.py",
        "`_lvspec` reaches the child processes with the pickled record",
    ),
    Seam(
        "sglang.srt.entrypoints.engine.Engine.__init__",
        Contains("if 'server_args' in kwargs:\n    server_args = kwargs['server_args']\n    ...\nelse:\n    ..."),
        "flags.py",
        "make_server_args is for Engine(server_args=...)",
    ),
)

ALGORITHM = (
    Seam(
        f"{_ALGORITHM}.register",
        Signature("(cls, name, *, supports_overlap=False, validate_server_args=None, spec_class=CustomSpecAlgo)"),
        "algorithm.py",
        "how LVSPEC gets its name",
    ),
    Seam(
        f"{_ALGORITHM}.from_string",
        Contains("spec = _get_registered_spec(upper)", "return spec"),
        "algorithm.py",
        "--speculative-algorithm LVSPEC resolves to our object in every process",
    ),
    Seam(
        "sglang.srt.speculative.spec_registry.get_spec",
        Signature("(name)"),
        "algorithm.py",
        "asks if we are registered",
    ),
    Seam(
        f"{_CUSTOM}.__init__",
        Signature("(self, name, factory, *, supports_overlap=False, validate_server_args=None)"),
        "algorithm.py",
        "SGLang builds our algorithm from its class",
    ),
    Seam(
        f"{_CUSTOM}.create_worker",
        Contains("self.factory(server_args)"),
        "algorithm.py",
        "the worker factory runs in the scheduler and installs the decode hooks there",
    ),
    Seam(
        _CUSTOM,
        Lacks("need_topk carries_draft_hidden_states create_future_map"),
        "algorithm.py",
        "we add what SGLang calls but does not define here; compare ours with SGLang's and drop what is the same",
    ),
    Seam(
        _CUSTOM,
        Has("is_standalone supports_grammar_overlap supports_prefill_shared_read_done handle_server_args"),
        "algorithm.py",
        "the answers that we change",
    ),
    Seam(f"{_ALGORITHM}.need_topk", Signature("(self)"), "algorithm.py", "ours stands in its place"),
    Seam(f"{_ALGORITHM}.carries_draft_hidden_states", Signature("(self)"), "algorithm.py", "ours stands in its place"),
    Seam(
        f"{_ALGORITHM}.create_future_map",
        Signature("(self, device, req_to_token_pool, needs_cpu_seq_lens=True, needs_confidence_relay=False)"),
        "algorithm.py",
        "ours stands in its place",
    ),
    Seam(
        "sglang.srt.managers.scheduler.Scheduler.init_overlap",
        Contains("self.spec_algorithm.create_future_map(self.device, self.req_to_token_pool, ...)"),
        "algorithm.py",
        "the scheduler asks every algorithm for the relay",
    ),
    Seam(
        _RELAY,
        Signature(
            "(self, device, spec_algo, req_to_token_pool, needs_cpu_seq_lens=True, needs_confidence_relay=False)"
        ),
        "algorithm.py",
        "create_future_map builds it",
    ),
    Seam(
        f"{_RELAY}._maybe_init_forward_bufs",
        Contains("self.spec_algo.is_some() and self.spec_algo.need_topk() and payload.topk_p is not None"),
        "algorithm.py",
        "need_topk() False keeps candidates out of the relay: a chain starts from the bonus token alone",
    ),
    Seam(
        "sglang.srt.managers.scheduler.Scheduler.init_disaggregation",
        Contains("self.spec_algorithm.carries_draft_hidden_states()"),
        "algorithm.py",
        "asked of every algorithm at start-up",
    ),
    Seam(
        f"{_ALGORITHM}.supports_grammar_overlap",
        Contains("self.is_standalone()"),
        "algorithm.py",
        "we answer as STANDALONE does: the inherited verify passes the grammar barrier",
    ),
)

WORKER = (
    Seam(
        "sglang.srt.speculative.standalone_worker_v2.StandaloneWorkerV2",
        Extends("EAGLEWorkerV2"),
        "worker.py",
        "the round is EAGLE's, with a draft that owns its embeddings",
    ),
    Seam(
        "sglang.srt.speculative.standalone_worker_v2.StandaloneWorkerV2",
        Signature("(self, server_args, gpu_id, nccl_port, target_worker)"),
        "worker.py",
        "the scheduler builds our worker with these",
    ),
    Seam(
        "sglang.srt.speculative.standalone_worker_v2.StandaloneWorkerV2.__init__",
        Contains(
            "self._draft_worker = StandaloneDraftWorker(server_args, gpu_id, nccl_port, target_worker)",
            "self._validate_vocab_compatibility(...)",
        ),
        "algorithm.py",
        "it names the draft's class itself, so a class REPLACE puts ours in; then it compares the vocabularies",
    ),
    Seam(
        "sglang.srt.speculative.standalone_worker_v2.StandaloneWorkerV2",
        Lacks("enable_dp_spec_prefill_coordination", "_hosts_draft"),
        "worker.py",
        "we set what its __init__ leaves out; drop ours once it does",
    ),
    Seam(
        "sglang.srt.speculative.eagle_worker_v2.EAGLEWorkerV2",
        Has("_draft_worker enable_dp_spec_prefill_coordination _hosts_draft last_shared_read_runner target_worker"),
        "worker.py",
        "attributes that we set or override",
    ),
    Seam(
        "sglang.srt.speculative.standalone_worker_v2.StandaloneWorkerV2._validate_vocab_compatibility",
        Signature("(self, target_vocab_size, target_tokenizer)"),
        "worker.py",
        "we override it with a message that names the token",
    ),
    Seam(
        "sglang.srt.speculative.eagle_worker_v2.EAGLEWorkerV2._forward_prefill_batch",
        Signature("(self, batch, on_publish=None, pp_proxy_tensors=None, coordination_plan=None)"),
        "worker.py",
        "we hold the prompt's ids around it",
    ),
    Seam(
        "sglang.srt.speculative.eagle_worker_v2.EAGLEWorkerV2._forward_prefill_batch",
        Contains(
            "self.target_worker.forward_batch_generation(batch, ...)",
            "self.draft_worker._draft_extend_for_prefill(batch, batch_output.logits_output.hidden_states, "
            "batch_output.next_token_ids, batch_output.logits_output.mm_input_embeds, kv_loc_plan=kv_loc_plan)",
        ),
        "worker.py",
        "the draft reads the prompt after the target, in the same call",
    ),
    Seam(
        "sglang.srt.speculative.eagle_worker_v2.EAGLEWorkerV2.forward_batch_generation",
        Contains(
            "verify_input: EagleVerifyInput = self.draft_worker.draft(batch)",
            "batch.spec_info = verify_input",
            "batch_output = self.verify(batch, pp_proxy_tensors=pp_proxy_tensors, grammar_barrier=grammar_barrier)",
            "on_publish(batch_output.new_seq_lens)",
            "self.draft_worker._draft_extend_for_decode(batch, batch_output, kv_loc_plan=verify_input.kv_loc_plan)",
        ),
        "worker.py",
        "the order of a round; a loose rule hangs on the verify input",
    ),
    Seam(
        "sglang.srt.speculative.base_spec_worker.BaseSpecWorker.last_shared_read_runner",
        Contains("self.target_worker.model_runner"),
        "worker.py",
        "we return what SGLang returns for a draft that reads nothing after verification",
    ),
    Seam(
        "sglang.srt.managers.tp_worker.TpModelWorker",
        Has("tokenizer", "model_runner"),
        "worker.py",
        "the draft's tokenizer and runner",
    ),
    Seam(
        "sglang.srt.models.llava",
        Avoids("forward_batch.forward_mode.is_target_verify()"),
        "models.py",
        "LLaVA is refused because its verify forward runs as a prefill; if it no longer does, allow it",
    ),
)

SEAMS = LOADING + FLAGS + ALGORITHM + WORKER
