"""Time series of `judge_decoding.serving.metrics` on Triton's /metrics.

Used on the scheduler's thread alone: metrics touched from two threads crash the server. Each call
crosses to the server's process and back, holding the GIL.
"""

import triton_python_backend_utils as pb_utils

from judge_decoding.serving.metrics import PREFIX


class MetricsEndpoint:
    """Makes time series, all with the deployment's name as a label."""

    def __init__(self, deployment):
        self.labels = {"deployment": deployment.name}
        self.families = {}  # a metric lives as long as its family

    def series(self, family, labels):
        if family.name not in self.families:
            kinds = {
                "counter": pb_utils.MetricFamily.COUNTER,
                "gauge": pb_utils.MetricFamily.GAUGE,
            }
            self.families[family.name] = pb_utils.MetricFamily(
                name=PREFIX + family.name, description=family.help, kind=kinds[family.kind]
            )
        return self.families[family.name].Metric(labels=self.labels | labels)
