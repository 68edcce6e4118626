"""The job store follows the gateway's settings."""

import dataclasses

import pytest

from nst_server.jobs import backbone as backbone_module
from nst_server.jobs.backbone import BackboneUnavailable, connect
from nst_server.jobs.tickets import TicketSource


async def test_changed_settings_reach_a_store_that_is_there(nats_url, store_settings):
    async with connect(nats_url, "gateway", store_settings):
        pass
    changed = dataclasses.replace(
        store_settings, max_queued_jobs=7, lease_seconds=33, retention_hours=2, max_picture_bytes=9 * 2**20
    )
    async with connect(nats_url, "gateway", changed) as backbone:
        streams = {info.config.name: info.config for info in await backbone.jetstream.streams_info()}
        tickets = TicketSource(backbone)
        await tickets.open()
    assert streams["NST_TICKETS"].max_msgs == 7
    assert tickets.lease_seconds == 33
    assert streams["NST_PICTURES"].max_bytes == 9 * 2**20
    assert streams["NST_PREVIEWS"].max_age == 2 * 3600
    for name in ("NST_EVENTS", "KV_nst_jobs", "NST_PICTURES", "NST_CHECKPOINTS"):
        assert not streams[name].max_age, "what a waiting job needs goes by itself"


async def test_a_model_server_says_so_when_no_gateway_has_set_the_store_up(nats_url, monkeypatch):
    monkeypatch.setattr(backbone_module, "START_SECONDS", 0.5)
    with pytest.raises(BackboneUnavailable):
        async with connect(nats_url, "model-server", None):
            pass
