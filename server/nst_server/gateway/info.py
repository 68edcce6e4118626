"""What this server is: models, model servers, limits and defaults."""

import asyncio
import math
from collections.abc import Awaitable, Callable
from importlib.metadata import version

from google.rpc import code_pb2

from nst.v1 import job_pb2, options_pb2
from nst.v1 import style_transfer_service_pb2 as pb
from nst_engine.networks import NETWORKS
from nst_server.config import GatewaySettings, StoreSettings, limits
from nst_server.gateway.errors import Refusal
from nst_server.gateway.specs import allowed_ranges, defaults
from nst_server.jobs.announcements import announcements, may_find_faces
from nst_server.jobs.backbone import Backbone
from nst_server.options import options_to_proto
from nst_server.pictures import PictureLimits

PATIENCE_SECONDS = 5.0
POSSIBLE_SECONDS = 1.0


class ServerInfo:
    """Answers GetServerInfo, and knows which models can run."""

    def __init__(self, backbone: Backbone, settings: GatewaySettings, store: StoreSettings) -> None:
        self._backbone = backbone
        self._settings = settings
        sides = {name: getattr(PictureLimits, name) for name in ("max_image_side", "min_image_side")}
        self._limits = {**limits(settings, store), **sides}
        self._found_possible: dict[tuple[str, bool], float] = {}

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

    async def check_possible(self, options: options_pb2.StylizeOptions, known: Callable[[], Awaitable[bool]]) -> None:
        """Refuses what no model server can do; while none is alive, jobs may wait for one.

        `known` tells whether the job is there already: then its request is answered as it was.

        Raises:
            Refusal: the model's weights are missing, or what finds faces.
        """
        needs = options.model, options.faces
        now = asyncio.get_running_loop().time()
        if now - self._found_possible.get(needs, -math.inf) < POSSIBLE_SECONDS:
            return
        alive = await announcements(self._backbone, patience=PATIENCE_SECONDS)
        equipped = [one for one in alive if options.model in one.models]
        if alive and not equipped:
            refusal = _unavailable(
                "MODEL_UNAVAILABLE",
                "spec.options.model",
                f"no model server has the weights of {options.model}: run `nst weights pull {options.model}` "
                "where they run",
            )
        elif options.faces and alive and not any(map(may_find_faces, equipped)):
            refusal = _unavailable(
                "FACES_UNAVAILABLE",
                "spec.options.faces",
                "no model server with the model can find faces: install the extra `faces` where they run, or give a "
                "mask as `subject`",
            )
        else:
            self._found_possible[needs] = now
            return
        if not await known():
            raise refusal


def _unavailable(reason: str, path: str, text: str) -> Refusal:
    return Refusal(code_pb2.FAILED_PRECONDITION, reason, f"{path}: {text}", {path: text})
