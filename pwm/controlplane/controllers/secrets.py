"""Secrets that an older cluster key has sealed are sealed with the present one; the older can then be thrown away."""

import asyncio

import structlog

from pwm.controlplane.secrets import Secrets
from pwm.controlplane.store import errors as store_errors

log = structlog.get_logger(__name__)

# A controller gets another key by being started again, and so gets another leader: this is for what failed.
LOOK_EVERY_S = 600.0


async def keep_sealed(secrets: Secrets) -> None:
    """Until cancelled."""
    while True:
        try:
            if done := await secrets.reseal():
                log.info("secrets are sealed with the present cluster key", count=done)
        except store_errors.StoreError as error:
            log.info("secrets are looked through later", why=str(error))
        await asyncio.sleep(LOOK_EVERY_S)
