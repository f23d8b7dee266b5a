"""SGLang's API keys: told to nobody, and missed where others reach the server.

SGLang 0.5.23 writes --api-key and --admin-api-key into its log and tells both to whoever may ask /server_info, which
with --admin-api-key alone is everybody.
"""

from __future__ import annotations

import ipaddress
import logging
from typing import TYPE_CHECKING, Any

from sgl_lvspec import late_hooks

if TYPE_CHECKING:
    from sglang.srt.server_args import ServerArgs

logger = logging.getLogger(__name__)

KEYS = ("api_key", "admin_api_key")
REDACTED = "<redacted>"


def install(server_args: ServerArgs) -> None:
    """Redact the keys in this process, and warn of a server without one that is not for this machine alone."""
    late_hooks.apply("sglang.srt.sampling.watermarking.core.redact_watermark_secrets", redact_keys, "after")
    if server_args.api_key is None and not is_loopback(server_args.host):
        logger.warning(
            "LVSPEC: the server listens on %s without an API key: whoever reaches it can ask it, and use what SGLang "
            "offers beside (stop requests, load weights, change its state). Start it with --api-key, or on 127.0.0.1.",
            server_args.host,
        )


def redact_keys(told: Any, _value: Any, /, *_args: Any, **_kwargs: Any) -> Any:
    """AFTER hook on `redact_watermark_secrets` (srt/sampling/watermarking/core.py:34), which all that is logged or told
    of the server's arguments passes."""
    if not isinstance(told, dict):
        return told
    secrets = [told[name] for name in KEYS if isinstance(told.get(name), str) and told[name]]
    if not secrets:
        return told
    redacted = {**told, **{name: REDACTED for name in KEYS if told.get(name)}}
    command = redacted.get("launch_command")
    for secret in sorted(secrets, key=len, reverse=True) if isinstance(command, str) else ():
        redacted["launch_command"] = redacted["launch_command"].replace(secret, REDACTED)
    return redacted


def is_loopback(host: str) -> bool:
    """Whether an address that a server listens on is reached from its own machine alone."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"
