"""Time series of `judge_decoding.serving.metrics` on Triton's /metrics.

Only the scheduler's thread uses them: metrics touched from two threads crash the server. Each call
is a round trip to the server's process, during which it holds the GIL.
"""

from __future__ import annotations

from collections.abc import Mapping

import triton_python_backend_utils as pb_utils

from judge_decoding.config import Deployment
from judge_decoding.serving.metrics import PREFIX, Family


class MetricsEndpoint:
    """Makes time series, all with the deployment's name as a label."""

    def __init__(self, deployment: Deployment) -> None:
        self.labels = {"deployment": deployment.name}
        self.families: dict[str, pb_utils.MetricFamily] = {}  # a metric lives as long as its family

    def series(self, family: Family, labels: Mapping[str, str]) -> pb_utils.Metric:
        if family.name not in self.families:
            kinds = {
                "counter": pb_utils.MetricFamily.COUNTER,
                "gauge": pb_utils.MetricFamily.GAUGE,
            }
            self.families[family.name] = pb_utils.MetricFamily(
                name=PREFIX + family.name, description=family.help, kind=kinds[family.kind]
            )
        return self.families[family.name].Metric(labels=self.labels | dict(labels))
