"""What this server is: models, model servers, limits and defaults."""

import asyncio
import math
from collections.abc import Awaitable, Callable
from importlib.metadata import version

from google.rpc import code_pb2

from nst.v1 import job_pb2
from nst.v1 import style_transfer_service_pb2 as pb
from nst_engine.networks import NETWORKS
from nst_server.config import GatewaySettings, StoreSettings, limits
from nst_server.gateway.errors import Refusal
from nst_server.gateway.specs import allowed_ranges, defaults
from nst_server.jobs.announcements import announcements
from nst_server.jobs.backbone import Backbone
from nst_server.options import options_to_proto
from nst_server.pictures import PictureLimits

PATIENCE_SECONDS = 5.0
AVAILABLE_SECONDS = 1.0


class ServerInfo:
    """Answers GetServerInfo, and knows which models can run."""

    def __init__(self, backbone: Backbone, settings: GatewaySettings, store: StoreSettings) -> None:
        self._backbone = backbone
        self._settings = settings
        sides = {name: getattr(PictureLimits, name) for name in ("max_image_side", "min_image_side")}
        self._limits = {**limits(settings, store), **sides}
        self._found_available: dict[str, float] = {}

    async def describe(self) -> pb.GetServerInfoResponse:
        """The whole answer."""
        alive = await announcements(self._backbone, patience=PATIENCE_SECONDS)
        available = {model for announcement in alive for model in announcement.models}
        return pb.GetServerInfoResponse(
            version=version("nst-serve"),
            models=[
                pb.Model(
                    name=network.name,
                    description=network.description,
                    credit=network.credit,
                    available=network.name in available,
                    taps=network.taps,
                )
                for network in NETWORKS.values()
            ],
            model_servers=[announcement.server for announcement in alive],
            limits=self._limits,
            defaults=options_to_proto(defaults(self._settings)),
            ranges={
                name: pb.Range(minimum=low, maximum=high)
                for name, (low, high) in allowed_ranges(self._settings).items()
            },
            preview_defaults=job_pb2.PreviewOptions(interval=self._settings.preview_interval),
        )

    async def check_model(self, model: str, known: Callable[[], Awaitable[bool]]) -> None:
        """Refuses a model that no model server has; while none is alive, jobs may wait for one.

        `known` tells whether the job is there already: then its request is answered as it was.

        Raises:
            Refusal: the model's weights are missing.
        """
        now = asyncio.get_running_loop().time()
        if now - self._found_available.get(model, -math.inf) < AVAILABLE_SECONDS:
            return
        alive = await announcements(self._backbone, patience=PATIENCE_SECONDS)
        if alive and not any(model in announcement.models for announcement in alive):
            if await known():
                return
            text = f"no model server has the weights of {model}: run `nst weights pull {model}` where they run"
            raise Refusal(
                code_pb2.FAILED_PRECONDITION,
                "MODEL_UNAVAILABLE",
                f"spec.options.model: {text}",
                {"spec.options.model": text},
            )
        self._found_available[model] = now
