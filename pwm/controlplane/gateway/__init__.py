"""HTTP/JSON in front of the services: see `gateway` for the picture."""

from pwm.controlplane.gateway.gateway import Authenticate, Authorize, Gateway, Principal
from pwm.controlplane.gateway.site import HealthReport

__all__ = ["Authenticate", "Authorize", "Gateway", "HealthReport", "Principal"]
