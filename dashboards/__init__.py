"""The Grafana dashboards: JSON as Grafana loads it, and the sources that it is made from.

``python -m dashboards write`` makes the JSON here and in ``provisioning/`` of what ``source/`` says.
"""
