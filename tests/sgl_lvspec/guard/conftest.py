"""The guard stands at requests as the verification's tests make them."""

from tests.sgl_lvspec.verification.conftest import settings, tp_group

__all__ = ["settings", "tp_group"]
