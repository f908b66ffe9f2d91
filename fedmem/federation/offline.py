"""Every outbound switch of Flower, Ray and Hugging Face, set to off (I10).

Invariants
- Importing this module sets the switches; it must come before the first import of flwr, ray or transformers.
- It imports none of them, opens no connection, and overwrites the values that the environment had before.

>>> set_switches()["FLWR_TELEMETRY_ENABLED"]
'0'
"""

import os

SWITCHES = {
    # Flower: telemetry reads its variable at import; the update check asks api.flower.ai.
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    # Flower would otherwise run `uv sync` for every run.
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    # Ray otherwise changes which CUDA devices are visible, and warns about it at import.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
}

# For Flower's simulation engine, set before it starts: Ray 2.55 asks the cloud's metadata service where it runs, even
# with usage stats off. A proxy on a closed port blocks that. Never set it on a device that must reach a SuperLink.
RAY_SWITCHES = {"HTTP_PROXY": "http://127.0.0.1:9", "NO_PROXY": "127.0.0.1,localhost"}


def set_switches() -> dict[str, str]:
    """Set every switch for this process and its children. Return the switches that were set."""
    os.environ.update(SWITCHES)
    return dict(SWITCHES)


set_switches()
